"""Words of programming: prose about programs, and the names from which Python functions are made."""

from asterism.demo.lexicon import Lexicon, frames

LEXICON = Lexicon(
    nouns=dict(
        developer="developer programmer maintainer reviewer tester administrator",
        unit="function method class module script subroutine decorator generator callback",
        variable="variable argument parameter attribute constant counter flag index",
        structure="list dictionary queue stack tuple array hash_table linked_list binary_tree set heap",
        defect="bug exception race_condition memory_leak syntax_error infinite_loop deadlock overflow typo regression",
        test="unit_test assertion benchmark test_case integration_test type_checker linter",
        file="file directory log configuration_file archive repository database_table source_file",
        service="server client database compiler interpreter scheduler cache parser thread web_framework",
        value="string integer boolean byte float timestamp token default_value identifier",
        change="commit branch pull_request patch release refactoring pipeline",
        message="request response query packet error_message payload header",
        method="recursion~ sorting_algorithm loop iteration~ binary_search regular_expression hashing~ serialisation~ list_comprehension",
    ),
    people=("developer",),
    adjectives=dict(
        developer="careful senior new curious remote",
        unit="nested recursive public asynchronous deprecated helper pure",
        variable="global local optional unused mutable private",
        structure="sorted empty nested immutable shared ordered",
        defect="silent subtle known intermittent off-by-one",
        test="automated failing slow parametrised missing",
        file="temporary hidden compressed plain-text missing",
        service="remote local single-threaded open-source idle",
        value="empty negative invalid random unique",
        change="recent breaking small reverted merged",
        message="malformed duplicate encoded delayed incoming",
        method="fast simple lazy iterative naive",
    ),
    frames=frames("""
developer rename variable in unit
developer debug unit with test
developer refactor unit
developer review change
developer fix defect in unit
developer merge change into file
developer write test for unit
developer deploy service
developer document unit
developer import unit from file
unit return value
unit raise defect
unit accept variable
unit iterate over structure
unit call unit
unit append value to structure
unit parse message
unit allocate structure
unit overwrite variable
unit log message
variable store value
variable shadow variable
variable point to structure
structure hold value
structure contain value
defect crash service
defect corrupt file
defect affect unit
test cover unit
test catch defect
test compare value with value
test fail after change
file define unit
file import file
file store value
service read file
service send message to service
service execute unit
service cache value
service reject message
value overflow variable
value identify message
change break test
change introduce defect
change simplify unit
message contain value
message reach service
method replace method
method traverse structure
method reduce structure to value
method search structure for value
"""),
    adverbs=["lazily", "recursively", "silently", "asynchronously", "explicitly", "automatically", "safely"],
    times=(
        "at run time",
        "in constant time",
        "during the build",
        "on every call",
        "at import time",
        "before the next release",
        "in the main loop",
        "by default",
        "in linear time",
        "in a separate process",
    ),
    reports=(
        "the documentation says that",
        "the stack trace shows that",
        "the type checker assumes that",
        "the changelog notes that",
        "the profiler showed that",
    ),
    judgements=["necessary", "safe", "sufficient", "idiomatic", "deprecated"],
    templates=(
        "<unit> ran in <2-900> milliseconds on <4-64> cores",
        "version <2-9>.<0-20> removed <unit> and added <unit>",
        "<service> listened on port <1024-9900> and wrote <file>",
        "line <3-900> of <file> raised <defect>",
        "the call took <variable> and returned <value>",
        "the index started at zero, so <structure> had <2-99> valid positions",
        "<test> failed because <variable> <was> None",
    ),
    tenses=("present", "present", "past"),
    modals=("can", "must", "should", "may"),
)

# Names for Python functions about each domain: what a list holds, its numeric and its text attributes, and what a run of numbers is called.
NAMES = {
    "code": dict(
        items="order invoice user session packet job task event row account product ticket node edge token record message player "
        "shipment employee book song photo game payment report link field customer",
        numbers="price size weight score duration count priority age length width balance rank rating distance capacity height depth cost",
        texts="name status label category owner city colour language author title country group type",
        series="values entries elements samples numbers readings results scores",
    ),
    "medical": dict(
        items="patient visit dose prescription symptom nurse ward_round blood_test donor infusion",
        numbers="heart_rate temperature dosage age weight platelet_count blood_pressure oxygen_level glucose",
        texts="diagnosis blood_group ward allergy drug surgeon clinic",
        series="pulses doses temperatures glucose_levels oxygen_levels blood_counts",
    ),
    "legal": dict(
        items="contract claim tenant hearing clause lease witness statute appeal exhibit judgment",
        numbers="rent fine deposit penalty notice_days damages liability instalment",
        texts="court jurisdiction plaintiff defendant remedy landlord tribunal",
        series="fines rents damages penalties deposits instalments",
    ),
    "science": dict(
        items="star planet electron particle galaxy molecule crystal comet isotope reaction",
        numbers="mass velocity energy wavelength density luminosity charge half_life pressure",
        texts="element species spectrum phase orbit catalyst telescope",
        series="masses energies wavelengths frequencies velocities pressures",
    ),
}
