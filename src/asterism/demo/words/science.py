"""Words of the natural sciences."""

from asterism.demo.lexicon import Lexicon, frames

LEXICON = Lexicon(
    nouns=dict(
        scientist="physicist chemist astronomer biologist geologist ecologist researcher botanist meteorologist oceanographer zoologist "
        "mathematician",
        body="star planet galaxy comet asteroid nebula black_hole moon satellite supernova red_giant pulsar white_dwarf",
        particle="electron proton neutron photon atom molecule ion isotope neutrino quark nucleus muon",
        substance="hydrogen~ helium~ carbon_dioxide~ oxygen~ acid salt crystal solvent polymer enzyme metal catalyst mineral nitrogen~ "
        "copper~ methane~ silicon~ alloy",
        organism="bacterium alga fern fungus beetle whale coral plankton~ moss frog finch larva orchid",
        instrument="telescope microscope spectrometer laser detector thermometer particle_accelerator seismometer antenna pendulum "
        "weather_balloon interferometer",
        quantity="temperature pressure~ mass velocity energy~ density wavelength frequency electric_charge entropy~ momentum~ "
        "luminosity~ acidity~ conductivity~",
        phenomenon="chemical_reaction eclipse earthquake diffraction~ nuclear_fusion~ radiation~ photosynthesis~ erosion~ evaporation~ "
        "magnetism~ gravity~ mutation volcanic_eruption tide ocean_current natural_selection~",
        theory="theory hypothesis model equation law prediction theorem principle",
        study="experiment observation survey measurement simulation expedition calculation field_study",
        pattern="spectrum anomaly correlation trend curve oscillation gradient signal fluctuation",
        structure="membrane crust mantle atmosphere glacier sediment magnetic_field lattice coastline ocean_floor solar_wind",
        light="light~ heat~ infrared_radiation~ ultraviolet_light~ starlight~ sound~ X-ray",
        cell="cell protein chromosome genome tissue chloroplast neuron receptor",
    ),
    people=("scientist",),
    definite=("quantity",),
    adjectives=dict(
        scientist="young careful sceptical visiting theoretical marine",
        body="distant massive rotating bright icy nearby young",
        particle="charged heavy unstable free excited relativistic",
        substance="pure dense molten organic liquid volatile",
        organism="marine tropical rare microscopic native aquatic",
        instrument="sensitive orbital portable optical infrared calibrated",
        quantity="constant average kinetic initial maximum critical",
        phenomenon="rapid slow spontaneous periodic violent global",
        theory="elegant simple quantum classical competing testable",
        study="controlled early repeated large-scale recent numerical",
        pattern="weak strong periodic unexpected linear seasonal",
        structure="thin outer frozen ancient dense lower",
        cell="living single mutant dividing human fluorescent",
    ),
    frames=frames("""
scientist measure quantity of body
scientist test theory with study
scientist publish study
scientist observe body through instrument
scientist calibrate instrument before study
scientist heat substance in instrument
scientist propose theory about phenomenon
scientist discover organism on structure
scientist repeat study
scientist estimate quantity from pattern
scientist compare pattern with theory
scientist dissolve substance in substance
scientist simulate phenomenon
scientist sequence cell of organism
scientist plot quantity against quantity
scientist map structure with instrument
body emit light
body orbit body
body reflect light
body collapse under quantity
body attract body
body lose quantity
particle collide with particle
particle carry quantity
particle absorb particle
particle escape from structure
particle decay into particle
particle scatter from substance
substance react with substance
substance absorb light
substance conduct light
substance melt during phenomenon
substance accumulate in structure
substance diffuse through structure
substance contain particle
organism adapt to phenomenon
organism absorb substance
organism depend on organism
organism migrate along structure
organism release substance
organism survive phenomenon
instrument detect particle
instrument record pattern
instrument track body
instrument resolve structure
quantity increase during phenomenon
quantity decrease with quantity
quantity determine phenomenon
quantity depend on quantity
phenomenon transform structure
phenomenon release quantity
phenomenon explain pattern
phenomenon produce substance
phenomenon occur in structure
theory predict pattern
theory describe phenomenon
theory relate quantity to quantity
theory fail for particle
study confirm theory
study reveal pattern
study contradict theory
study require instrument
pattern suggest phenomenon
pattern match theory
pattern vary with quantity
structure surround body
structure shield organism from light
structure trap substance
cell divide during phenomenon
cell produce substance
cell store quantity
cell bind substance
"""),
    adverbs=["precisely", "rapidly", "slowly", "directly", "independently", "steadily", "simultaneously", "roughly"],
    times=(
        "over millions of years",
        "at low temperature",
        "in the laboratory",
        "near absolute zero",
        "under high pressure",
        "during the expedition",
        "at the edge of the solar system",
        "in a vacuum",
        "with high precision",
        "at room temperature",
        "in the early universe",
    ),
    reports=(
        "the data show that",
        "recent results suggest that",
        "the authors conclude that",
        "the model predicts that",
        "observations confirm that",
        "the experiment demonstrated that",
    ),
    judgements=["plausible", "remarkable", "consistent", "probable", "testable"],
    templates=(
        "<instrument> recorded <quantity> of <2-900> <kelvin|joules|metres per second|hertz>",
        "the sample was heated to <60-900> degrees and then cooled for <2-48> hours",
        "<body> lay about <4-900> light years from the sun",
        "the error was smaller than <1-9> per cent, and <pattern> remained significant",
        "the half-life of <particle> was <2-80> <seconds|days|years>",
        "a wavelength of <300-900> nanometres corresponded to <particle>",
        "in <1850-2015>, <scientist> described <organism> for the first time",
        "the concentration of <substance> fell by <3-60> per cent",
        "<study> covered <12-900> samples from <structure>",
        "the ratio of <quantity> to <quantity> was <2-40>",
        "energy was conserved, but <quantity> <was> not",
        "each <particle|molecule|cell> contained <2-30> atoms of <substance>",
    ),
    tenses=("present", "present", "past"),
    modals=("can", "may", "might", "should"),
)
