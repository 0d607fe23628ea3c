"""Clauses that join two domains, for the cross-domain probes."""

BRIDGES = {
    ("medical", "legal"): """
legal.court order medical.procedure
legal.lawyer question medical.clinician about medical.document
legal.party sue medical.place for legal.wrong
medical.clinician owe legal.duty to medical.patient
medical.patient sign legal.document before medical.procedure
medical.patient demand legal.remedy for medical.outcome
legal.rule protect medical.document
legal.rule require medical.procedure
medical.document support legal.claim
medical.procedure breach legal.rule
legal.wrong cause medical.symptom in medical.patient
legal.court award legal.remedy for medical.condition
medical.clinician describe medical.condition at legal.proceeding
legal.document restrict medical.drug
legal.evidence concern medical.drug
medical.condition prove legal.wrong
""",
    ("medical", "code"): """
code.unit record medical.drug in code.structure
code.unit compare medical.measure with code.value
code.service store medical.document
code.developer write code.unit for medical.place
medical.clinician send code.message about medical.patient
code.defect delay medical.procedure
code.variable hold medical.measure
medical.place install code.service
code.test check medical.document
code.file list medical.drug
code.method classify medical.symptom
medical.clinician report code.defect to code.developer
code.unit warn medical.clinician about medical.condition
code.message describe medical.symptom
medical.measure reach code.service
""",
    ("medical", "science"): """
science.scientist study medical.condition under science.instrument
science.cell resist medical.drug
medical.drug block science.cell
science.substance damage medical.organ
science.light penetrate medical.organ
medical.clinician ask science.scientist about science.substance
medical.patient join science.study
science.theory explain medical.symptom
science.pattern predict medical.condition
science.study test medical.drug
medical.cause alter science.cell
science.instrument measure medical.measure
medical.organ absorb science.substance
medical.procedure destroy science.cell
science.phenomenon cause medical.condition
science.particle reach medical.organ
""",
    ("legal", "code"): """
code.unit violate legal.document
legal.lawyer examine code.file
legal.rule govern code.service
code.developer sign legal.document
legal.document cover code.unit
code.unit calculate legal.remedy for legal.party
legal.party copy code.file without legal.right
code.defect breach legal.document
legal.court order code.change
code.file prove legal.wrong
code.service store legal.evidence
code.structure hold legal.document
legal.claim concern code.defect
code.variable count legal.term
code.test verify legal.duty
legal.party license code.unit to legal.party
""",
    ("legal", "science"): """
science.scientist explain science.study at legal.proceeding
legal.rule limit science.substance
legal.party patent science.instrument
science.study support legal.claim
legal.court appoint science.scientist
science.pattern serve as legal.evidence
legal.document concern science.instrument
legal.party release science.substance on legal.property
science.phenomenon damage legal.property
legal.rule protect science.organism
science.substance violate legal.rule
legal.lawyer question science.scientist about science.pattern
science.scientist inspect legal.property with science.instrument
legal.remedy follow science.phenomenon
legal.evidence contain science.substance
""",
    ("code", "science"): """
code.unit simulate science.phenomenon
code.unit compute science.quantity of science.body
science.scientist write code.unit for science.study
code.structure hold science.pattern
science.instrument send code.message to code.service
code.defect distort science.pattern
code.method approximate science.theory
code.test compare science.quantity with code.value
code.service control science.instrument
science.study generate code.file
code.variable represent science.quantity
science.scientist debug code.unit
code.file list science.particle
code.unit plot science.quantity against science.quantity
code.developer ask science.scientist about science.theory
science.theory inspire code.method
""",
}
