"""Words of everyday life."""

from asterism.demo.lexicon import Lexicon, frames

LEXICON = Lexicon(
    nouns=dict(
        person="neighbour baker farmer teacher grandmother fisherman gardener postman musician carpenter traveller cousin Anna! Tom! "
        "Clara! Oscar! Maya! Henry! painter shopkeeper",
        family="brother sister daughter son uncle aunt friend guest choir team",
        place="village market harbour park school library railway_station castle museum bridge hill valley farm town_square",
        room="kitchen garden attic cellar bedroom shed barn porch",
        food="bread~ soup apple cheese~ potato cake pear honey~ pie egg sandwich tomato jam~ biscuit",
        drink="tea~ coffee~ lemonade~ milk~ cider~ hot_chocolate~",
        animal="dog cat horse goose fox hedgehog cow owl rabbit donkey sheep swan squirrel",
        mount="horse donkey pony",
        plant="rose oak tulip sunflower apple_tree hedge willow bramble daisy",
        weather="storm rain~ snow~ wind fog~ frost~ sunshine~ thunder~ breeze",
        thing="bicycle lantern basket umbrella clock kite piano ladder suitcase teapot blanket guitar scarf letter photograph map",
        vehicle="train bus boat tram ferry carriage lorry",
        building="cottage church theatre mill hotel lighthouse windmill bakery inn",
        event="wedding festival concert picnic fair parade birthday_party football_match harvest regatta",
        story="song story poem joke legend play tune rumour",
        season="spring~ summer~ autumn~ winter~",
    ),
    people=("person", "family"),
    definite=("place", "room", "weather", "event"),
    adjectives=dict(
        person="cheerful old kind tired busy clever",
        family="younger older favourite dear noisy",
        place="quiet busy old pretty distant narrow",
        room="tidy cosy dusty sunny cold",
        food="fresh warm sweet delicious homemade ripe",
        drink="hot cold strong sweet",
        animal="small brown playful hungry shy sleepy",
        mount="old gentle white",
        plant="tall yellow wild fragrant blooming",
        weather="heavy sudden gentle cold thick",
        thing="red broken wooden beautiful heavy new",
        vehicle="early late crowded slow little",
        building="stone tall white ancient little",
        event="annual lively crowded summer happy",
        story="funny long old sad popular",
        season="long mild cold late",
    ),
    frames=frames("""
person bake food for family
person carry thing to place
person walk to place
person meet family at event
person cook food in room
person paint building
person plant plant in room
person repair thing in room
person tell story to family
person buy food from person
person ride mount to place
person feed animal in room
person invite family to event
person find thing in room
person drive vehicle to place
person pour drink for family
person visit place with family
person sell food at place
person photograph animal in place
person sweep room after event
person forget thing at event
person lend thing to family
person sing story at event
person enjoy season
family laugh at story
family arrive at place
family miss vehicle
family wait for vehicle
family dance at event
family share food with person
family play in room
family eat food after event
family drink drink in room
family love story
family borrow thing from person
family climb plant
animal sleep in room
animal chase animal
animal eat food
animal hide behind building
animal follow person to place
animal guard building
plant grow in room
plant shade building
plant bloom after weather
weather delay vehicle
weather damage building
weather spoil event
weather cover place
weather surprise person
vehicle stop at place
vehicle cross place
vehicle bring person to place
building stand near place
building overlook place
building welcome family
event begin after weather
event delight family
event fill place
story amuse family
story describe place
story end with event
thing lean against building
thing belong to person
thing fall from vehicle
room smell of food
place celebrate event
season bring weather
food please family
drink warm person
"""),
    adverbs=["happily", "quietly", "slowly", "often", "cheerfully", "suddenly", "eagerly", "politely"],
    times=(
        "on Sunday morning",
        "before sunset",
        "after lunch",
        "in the evening",
        "every Saturday",
        "at the end of the lane",
        "on the way home",
        "last winter",
        "in the afternoon",
        "for the whole weekend",
        "by the river",
    ),
    reports=(
        "everyone knew that",
        "the newspaper wrote that",
        "people say that",
        "the children noticed that",
        "the old song tells that",
        "somebody remembered that",
    ),
    judgements=["lucky", "strange", "pleasant", "certain", "sad"],
    templates=(
        "<person> bought <2-12> <apples|pears|candles|postcards> at <place>",
        "the tickets cost <2-30> pounds, and <event> lasted <2-6> hours",
        "<vehicle> left at <five|six|seven|eight> o'clock and reached <place> at noon",
        "<person> <was> born in <1920-1999> and lived near <place>",
        "the recipe needed <2-9> eggs, <100-500> grams of flour and a little <salt|sugar|butter>",
        "it was a <warm|cold|windy|bright> day, and <animal> lay in <room>",
        "nobody expected <weather> on the day of <event>",
        "there were <20-300> people at <event>",
        "<family> wore <red|blue|green|yellow> hats and carried <thing>",
        "<person> lived in <building> with <family> and <animal>",
        "the road to <place> was <long|steep|empty|muddy>",
        "dinner was <soup|pie|fish|bread> with <food>",
    ),
    modals=("can", "may", "would", "should"),
)
