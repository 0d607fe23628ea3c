"""Words of the law."""

from asterism.demo.lexicon import Lexicon, frames

LEXICON = Lexicon(
    nouns=dict(
        party="plaintiff defendant tenant landlord buyer seller employer employee creditor debtor beneficiary trustee guardian "
        "witness claimant appellant respondent licensee insurer borrower executor",
        lawyer="lawyer judge solicitor barrister prosecutor magistrate arbitrator notary attorney mediator clerk juror",
        court="court tribunal high_court appeal_court magistrates'_court parliament council commission regulator",
        document="contract lease will deed affidavit warrant agreement mortgage settlement guarantee licence partnership_agreement "
        "tenancy_agreement",
        rule="statute clause provision regulation section act amendment treaty precedent doctrine ordinance exemption by-law",
        claim="claim appeal petition motion complaint lawsuit objection application counterclaim defence",
        wrong="negligence~ fraud~ breach_of_contract~ trespass~ libel~ theft~ nuisance misconduct~ default infringement "
        "misrepresentation perjury~ discrimination~ bribery~",
        remedy="injunction compensation~ fine penalty refund sentence restitution~ court_order award",
        right="right privilege entitlement easement title licence freedom",
        duty="duty obligation liability responsibility covenant undertaking",
        evidence="evidence~ testimony~ exhibit invoice letter fingerprint photograph receipt sworn_statement recording signature",
        property="property~ estate land~ building vehicle trademark share copyright trust_fund house parcel",
        proceeding="trial hearing arbitration~ inquiry mediation~ inquest cross-examination deposition preliminary_hearing",
        term="notice_period deadline time_limit deposit condition precondition instalment",
    ),
    people=("party", "lawyer"),
    definite=("court",),
    adjectives=dict(
        party="injured innocent liable unrepresented joint original former",
        lawyer="presiding senior independent appointed learned opposing",
        court="lower supreme federal local competent",
        document="written binding void standard unsigned valid notarised",
        rule="mandatory statutory constitutional relevant ambiguous revised",
        claim="frivolous amended pending civil disputed successful",
        wrong="alleged gross wilful repeated contractual admitted",
        remedy="statutory fair interim permanent heavy equitable",
        right="exclusive legal contractual equal constitutional",
        duty="fiduciary strict contractual statutory reasonable",
        evidence="documentary hearsay circumstantial sworn inadmissible fresh",
        property="leasehold intellectual disputed adjoining rented",
        proceeding="public criminal civil closed lengthy",
        term="strict agreed reasonable contractual",
    ),
    frames=frames("""
court dismiss claim
court grant remedy to party
court reject evidence
court interpret rule
court apply rule to claim
court award remedy for wrong
court hear claim
court adjourn proceeding
court impose remedy on party
court amend rule
court repeal rule
court set term
court enforce document against party
lawyer draft document for party
lawyer advise party about right
lawyer cite rule during proceeding
lawyer file claim against party
lawyer present evidence at proceeding
lawyer question party during proceeding
lawyer challenge evidence
lawyer represent party at proceeding
lawyer review document before proceeding
lawyer extend term
party sue party for wrong
party breach document
party sign document
party waive right under rule
party transfer property to party
party deny wrong
party lodge claim with court
party admit wrong
party inherit property from party
party owe duty to party
party assert right over property
party demand remedy for wrong
party accept remedy from court
party miss term
party revoke document
party perform duty under document
rule prohibit wrong
rule protect right
rule govern document
rule limit remedy
rule apply to document
rule impose duty on party
rule exclude evidence
rule define wrong
rule override document
document transfer property to party
document create duty
document expire after term
document bind party
document contain rule
document specify term
evidence support claim
evidence prove wrong
evidence contradict evidence
evidence satisfy court
claim fail under rule
claim succeed before court
claim concern property
claim rely on rule
wrong harm party
wrong invalidate document
wrong justify remedy
remedy compensate party for wrong
remedy follow wrong
property pass to party
property belong to party
proceeding concern document
proceeding end with remedy
proceeding determine right
right arise under document
duty survive document
duty rest on party
term bind party
"""),
    adverbs=["expressly", "lawfully", "jointly", "unanimously", "knowingly", "formally", "promptly", "unlawfully"],
    times=(
        "within thirty days",
        "at the first hearing",
        "under the governing law",
        "without prior notice",
        "before the closing date",
        "on the balance of probabilities",
        "beyond reasonable doubt",
        "in open court",
        "for the term of the agreement",
        "subject to appeal",
        "in good faith",
    ),
    reports=(
        "the court held that",
        "the agreement provides that",
        "counsel submitted that",
        "the statute makes clear that",
        "the tribunal found that",
        "it was agreed that",
    ),
    judgements=["settled", "arguable", "undisputed", "immaterial", "lawful"],
    templates=(
        "under section <2-90> of the act, <party> <was> liable for <wrong>",
        "pursuant to article <1-30>, <court> ordered <a refund|payment of costs|a new hearing> within <7-90> days",
        "<party> paid <200-9000> pounds in <rent|costs|damages> to <party>",
        "the notice was served on <party> by <registered post|hand|the bailiff>",
        "clause <2-40> excluded liability for <wrong> and <wrong>",
        "the appeal was <allowed|dismissed> with costs",
        "<lawyer> relied on paragraph <3-60> of <document>",
        "the limitation period of <2-12> years had expired before <party> issued proceedings",
        "judgment was entered for <party> in the sum of <500-9900> pounds",
        "no <tenant|creditor|person> was entitled to <remedy> under subsection <1-9>",
        "the burden of proof lay on <party>",
        "the parties exchanged <document> in <January|March|June|October>",
    ),
    tenses=("shall", "past", "present", "past"),
    modals=("shall", "must", "may", "may", "shall"),
)
