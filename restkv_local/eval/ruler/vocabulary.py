"""Words of RULER's tasks: our own list, where RULER takes those of a word package."""

from __future__ import annotations

import random

ADJECTIVES = tuple(
    """able amber ancient arctic autumn awake bare basic bitter blank blond blunt bold brass brave brief bright brisk
    broad bronze brown busy calm careful cheap chilly civic clean clear clever cloudy coastal cold common coral cosy
    crisp crimson curious daily damp dark deep dense direct distant double dry dull dusty eager early easy elastic
    elder empty equal even exact extra faint fair familiar famous fast fatal fierce fine firm flat foreign formal
    frank free fresh frosty frozen full funny gentle giant glad global golden grand grave great green grey handy
    happy hard hasty heavy hidden high hollow honest hot huge humble hungry icy ideal idle inner jolly joint keen
    kind large late lazy lean level light limp liquid little lively local lonely long loose loud loyal lucky lunar
    mad magic main major mature mellow mild minor misty modern modest moist muddy mute narrow native neat new noble
    noisy normal northern odd old olive open orange outer pale past patient perfect plain polite poor precise pretty
    prime private proper proud public pure quick quiet random rapid rare raw ready real red remote rich rigid ripe
    rough round royal rude rural rusty sacred sad safe salty scarlet secret senior serious shallow sharp shiny short
    shy silent silver simple single sleepy slim slow small smooth sober social soft solar solid sour southern spare
    steady steep stiff still strange strict strong sudden sunny super sweet swift tall tame tart tender thick thin
    tidy tight tiny tired tough tropical true upper urban useful usual vague valid vast violet vital vivid warm
    weary western wet white whole wide wild windy wise wooden yellow young zesty""".split()
)
NOUNS = tuple(
    """acorn actor alley anchor angle ankle anvil apple apron arch arrow artist atlas attic autumn axle badge baker
    bamboo banjo barge barn barrel basin basket beach beacon beetle bell bench berry bishop blanket blossom boat bottle
    boulder bracket branch bread breeze brick bridge broom brush bucket buffalo bugle butter button cabin cable cactus
    camel camera candle canoe canvas canyon captain caravan carbon carpet carrot castle cattle cavern cellar chain
    chair chalk chapel cherry chest chimney cinema circle circus clay cliff clinic clock cloud clover coach coast
    cobalt coffee collar comet copper corner cotton cottage cradle crane crater cricket crown crystal cupboard curtain
    cushion dagger dancer desert diamond dolphin donkey door dragon drawer drum eagle easel elbow elephant engine
    envelope falcon farmer fathom feather fence ferry fiddle finger flag flame flask flute forest forge fossil
    fountain fox frame freight fruit funnel galaxy gallery garage garden garlic gate geyser ginger glacier glove
    goblet goose granite grape gravel guitar hammer hammock harbour harp harvest hatch hawk hedge helmet heron hinge
    honey hotel hunter igloo insect island ivory jacket jaguar jungle kayak kettle kitchen kite ladder lagoon lake
    lantern lasso lawyer leaf leather lemon lens lever library lily lizard llama lobster locket lodge lotus magnet
    mango mantle maple marble market marsh mask meadow melon mentor meteor mill mirror monk monkey mosaic motor
    mountain museum mustard napkin needle nettle nickel nomad novel oasis ocean onion orbit orchard orchid organ otter
    oven owl oyster paddle palace panther paper parade parrot pasture pebble pedal pelican pencil penguin pepper
    piano pigeon pillow pilot pirate pitcher planet plaza plough pocket poet pony poppy potato prairie prism pumpkin
    puppet puzzle pyramid quarry quilt rabbit radar radish raft railway raven reef ribbon river robin rocket roof
    rope rudder saddle sailor salmon sandal satchel saucer scarf school scooter sculptor shepherd shovel signal sketch
    skillet sleigh smith soldier spade sparrow spider spinach sponge spoon squirrel stable statue stove summit sunset
    swan tailor teapot temple tent theatre thimble thunder tiger timber tomato torch tower tractor trumpet tulip
    tunnel turbine turtle umbrella valley vessel village violin volcano waffle wagon walnut walrus window winter
    wizard wolf workshop yacht zebra""".split()
)
VERBS = tuple(
    """accept admire advise allow amuse answer appear argue arrive ask assist attack avoid bake balance begin behave
    believe belong blink borrow bounce breathe build bury calculate carry catch cause change chase cheer choose claim
    climb collect compare complain confess connect consider contain continue copy count cover crawl create cross
    dance decide decorate deliver depend describe destroy develop discover divide dream drive earn educate enjoy enter
    escape examine excite exist expand explain explore fasten fetch finish float follow forget forgive gather guess
    happen hesitate identify imagine improve include inform inspect invent invite juggle knit launch learn listen
    manage measure mention multiply notice obey observe obtain offer organise paint perform permit persuade practise
    predict prepare prevent produce promise protect provide publish punctuate question receive recognise reduce reflect
    refuse remember repair replace rescue return scatter scratch search select shelter shiver solve squeeze stretch
    succeed suggest supply suppose surround suspect teach travel tremble understand unlock visit wander whisper
    wonder""".split()
)
PLAIN = tuple(sorted({*ADJECTIVES, *NOUNS, *VERBS}))
# Written as one word: what a list takes that needs more words than there are.
COMPOUND = tuple(sorted({f"{first}{second}" for first in ADJECTIVES for second in NOUNS}))


def key(rng: random.Random) -> str:
    """A key such as "amber-kettle"."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def distinct_keys(rng: random.Random, n: int) -> list[str]:
    """So many different keys."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[key(rng)] = None
    return list(found)
