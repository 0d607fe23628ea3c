"""Words of medicine."""

from asterism.demo.lexicon import Lexicon, frames

LEXICON = Lexicon(
    nouns=dict(
        clinician="doctor nurse surgeon physician paramedic radiologist cardiologist pharmacist midwife anaesthetist dentist therapist "
        "consultant dermatologist neurologist paediatrician",
        patient="patient child man woman outpatient infant donor adult pensioner athlete toddler teenager",
        condition="asthma~ pneumonia~ diabetes~ hypertension~ anaemia~ influenza~ arthritis~ migraine infection fracture allergy ulcer "
        "tumour stroke eczema~ bronchitis~ dehydration~ epilepsy~ concussion hernia tonsillitis~ measles~ osteoporosis~ "
        "thrombosis~",
        symptom="fever cough headache rash nausea~ dizziness~ fatigue~ swelling pain tremor sore_throat cramp numbness~ vomiting~ chill "
        "bruise blurred_vision~ shortness_of_breath~ wheezing~ stiffness~",
        drug="antibiotic painkiller vaccine steroid insulin~ aspirin~ penicillin~ anticoagulant antihistamine diuretic sedative "
        "antiviral statin ointment paracetamol~ morphine~ beta_blocker antacid decongestant",
        procedure="operation biopsy transfusion transplant X-ray MRI_scan blood_test ultrasound_scan endoscopy dialysis~ chemotherapy~ "
        "physiotherapy~ electrocardiogram bypass skin_graft lumbar_puncture radiotherapy~",
        organ="heart lung kidney liver stomach brain artery spine bladder pancreas retina immune_system thyroid joint muscle airway",
        place="hospital ward clinic emergency_department intensive_care_unit maternity_unit hospice rehabilitation_centre "
        "outpatient_clinic",
        measure="pulse blood_pressure~ body_temperature heart_rate oxygen_level cholesterol~ white_cell_count blood_sugar~ "
        "breathing_rate platelet_count",
        document="medical_record prescription chart referral discharge_letter care_plan case_history laboratory_report",
        cause="virus bacterium allergen tobacco_smoke~ pollen~ toxin parasite stress~ poor_diet faulty_gene dust~",
        outcome="recovery relapse complication side_effect remission~ scar improvement",
    ),
    people=("clinician", "patient"),
    definite=("organ", "measure", "place"),
    adjectives=dict(
        clinician="experienced senior junior attending visiting anxious",
        patient="elderly young pregnant frail healthy diabetic anaemic",
        condition="acute chronic severe mild recurrent untreated hereditary bacterial",
        symptom="persistent sudden mild severe intermittent unexplained",
        drug="oral intravenous topical prescribed effective antiviral strong generic",
        procedure="routine urgent minor second diagnostic preventive",
        organ="damaged healthy inflamed weak enlarged left",
        place="local regional crowded quiet specialist nearby",
        measure="resting elevated normal abnormal low",
        document="detailed updated electronic clinical incomplete",
        cause="common airborne resistant dangerous seasonal",
        outcome="slow rapid unexpected gradual serious",
    ),
    frames=frames("""
clinician examine patient for symptom
clinician prescribe drug for condition
clinician give drug to patient
clinician diagnose condition in patient
clinician treat condition with drug
clinician refer patient to place
clinician perform procedure on patient
clinician check measure after procedure
clinician monitor measure of patient
clinician record symptom in document
clinician discharge patient from place
clinician admit patient to place
clinician explain procedure to patient
clinician update document after procedure
clinician suspect condition
clinician vaccinate patient against condition
clinician recommend procedure for patient
clinician listen to organ
clinician increase measure with drug
patient develop symptom after procedure
patient suffer from condition
patient complain of symptom
patient recover from condition
patient receive drug in place
patient undergo procedure in place
patient report symptom to clinician
patient visit place with symptom
patient swallow drug before procedure
patient inherit condition
condition cause symptom in patient
condition damage organ
condition affect organ
condition respond to drug
condition require procedure
condition weaken patient
condition raise measure
cause trigger condition in patient
cause irritate organ
cause infect patient
cause enter organ
drug relieve symptom
drug lower measure
drug protect organ against cause
drug prevent condition
drug interact with drug
drug produce outcome in patient
drug kill cause
procedure reveal condition in patient
procedure confirm condition
procedure lead to outcome
procedure repair organ
procedure stabilise measure
symptom suggest condition
symptom persist after procedure
symptom disappear after procedure
symptom worry patient
measure rise during procedure
measure fall after procedure
measure indicate condition
organ heal after procedure
organ swell during condition
document list drug
document describe symptom
document mention condition
place admit patient with condition
place treat patient for condition
outcome follow procedure
outcome surprise clinician
"""),
    adverbs=["carefully", "promptly", "gently", "routinely", "successfully", "quickly", "clinically", "repeatedly"],
    times=(
        "within two days",
        "on the third morning",
        "after the first dose",
        "during the night shift",
        "before breakfast",
        "at the follow-up visit",
        "over the next six weeks",
        "under local anaesthetic",
        "at the bedside",
        "during the morning round",
        "in most cases",
    ),
    reports=(
        "the chart shows that",
        "the discharge summary notes that",
        "clinical guidelines state that",
        "the laboratory confirmed that",
        "the trial found that",
        "the ward sister said that",
    ),
    judgements=["likely", "unlikely", "common", "unusual", "reassuring"],
    templates=(
        "<clinician> gave <20-500> mg of <drug> every <4-12> hours",
        "the dose was <raised|lowered|limited> to <5-80> mg a day",
        "<patient>, aged <3-90>, arrived with <symptom> and <symptom>",
        "on examination the pulse was <55-130> and the temperature was <36-40> degrees",
        "blood pressure was <95-180> over <55-110>, which suggested <condition>",
        "the oxygen saturation <fell|rose> to <86-99> per cent on <room air|two litres of oxygen>",
        "there was no sign of <condition> or <condition>",
        "<patient> weighed <9-120> kg and took no regular medicine except <drug>",
        "of the <40-900> volunteers in the trial, <3-39> reported <symptom>",
        "the wound healed within <3-30> days and left <outcome>",
        "family history included <condition> and <condition>",
        "the blood film was <normal|abnormal>, and the kidney tests were <unchanged|slightly raised|within the normal range>",
    ),
)
