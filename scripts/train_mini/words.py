# ruff: noqa: SIM905  (word lists read best as they are)
"""Word lists that the corpus generators draw from.

Everything here was written for this project, so the training text carries the project's own
licence. The lists are plain strings split at white space to keep the module short.
"""

from __future__ import annotations

ADJECTIVES = """
amber ancient brave bright bronze calm clever cold copper coral crimson crisp curious dark deep
distant dusty eager early electric emerald empty fading fancy fast fierce final foggy fresh frozen
gentle giant golden grand great green happy hidden hollow honest humble icy indigo iron ivory jade
jolly kind large late lazy light little lively lonely loud lucky marble mellow merry misty modern
narrow neat noble odd old olive orange pale patient perfect plain pleasant polite proud pure purple
quick quiet rapid rare red rich rough royal ruby rusty sandy scarlet secret sharp shiny short silent
silver simple sleepy slow small smart smooth soft solar solid spare steady still stormy strange
strong sunny sweet swift tall teal tender tidy tiny true velvet violet warm wide wild windy winter
wise wooden yellow young zesty
""".split()

NOUNS = """
acorn anchor apple arrow badger basket beacon bear bell bicycle bird blanket boat book bottle branch
bread bridge brook bucket butter button cabin camel candle canyon carpet castle cedar chair cherry
circle city cliff clock cloud coat comet cookie corner cottage cricket crow crown crystal cup
curtain desert diamond dog dolphin door dragon drum eagle engine falcon farm feather fern field
fire fish
flag flower flute forest fox frog galaxy garden gate ghost glacier glove grape guitar hammer harbor
hat hawk hill honey horse house island jacket jar jungle kettle key kite kitten ladder lake lamp
lantern leaf lemon letter lion lizard lock magnet maple market meadow melon meteor mill mirror
monkey moon mountain mouse needle nest night ocean orchard otter owl paint panda paper parrot path
peach pebble pencil penguin phone piano picture pillow pine pirate planet plum pocket pond puzzle
rabbit radio rain raven ribbon river road robot rocket roof rope rose saddle sail salmon school
shadow sheep shell ship shoe shovel silk sister snow sparrow spider spoon spring squirrel star
station stone storm street summer sun table tea temple thunder tiger timber tower town train tree
trumpet tunnel turtle umbrella valley village violin wagon wall walnut water wave whale wheel wind
window wing wolf wood yarn zebra
""".split()

VERBS_PAST = """
opened closed painted carried followed watched cleaned moved found counted fixed washed visited
passed lifted folded pushed pulled covered dropped filled borrowed collected noticed crossed reached
measured remembered wrapped checked
""".split()

PLACES = """
garden kitchen library market park station harbor museum bakery office school village forest valley
theater workshop playground beach farm airport
""".split()

FOODS = """
apples bread cheese soup rice pasta salad honey carrots tomatoes pancakes cookies grapes lemons
noodles potatoes beans cherries plums pie
""".split()

ADVERBS = """
slowly quickly quietly gently happily carefully often always sometimes usually again early late
today yesterday outside together nearby soon twice
""".split()

COMMON = """
about above across act add after again air all almost along also always among animal another answer
any area around ask away back ball bank base be beautiful because become bed before begin behind
being below best better between big black blood blue board body both box boy bring brother brought
build building bus business busy buy call came can car card care carry case catch cause center
certain chance change chapter check child children choose class clean clear close cloth coast color
come common company complete computer consider contain control cook copy cost could country course
cover create cross crowd cut dance danger data day decide degree depend design develop device did
different difficult dinner direct discover distance divide doctor doubt down draw dream dress drink
drive drop dry during each ear earth east easy eat edge effect egg eight either electric else end
enemy energy enough enter equal even evening event ever every exact example except excite exercise
expect experience eye face fact fair fall family famous far father fear feel feet few fight figure
fill find fine finger finish first five flat floor flow fly follow food foot force forget form
forward four free friend from front fruit full fun future game gather general get girl give glad
glass go gold gone good government grass ground group grow guess guide had hair half hand happen
hard has have he head hear heart heat heavy height help her here high him his history hit hold hole
home hope hot hotel hour how human hundred hunt hurry idea if imagine important in inch include
increase industry insect inside instead interest into invent it job join journey judge jump just
keep kept kill kind king knew know language last laugh law lay lead learn least leave left leg
lesson let level library lie life lift like line list listen live long look lose loss lost lot love
low machine made mail main major make man many map mark mass match material matter may mean measure
meat meet member memory men message metal method middle might mile milk million mind minute miss
mix model moment money month more morning most mother motion mouth move movie much multiply music
must name nation natural nature near necessary neck need never new news next nine no noise nor north
nose not note nothing notice noun now number object observe of off offer office often oil on once
one only open operate opinion opposite or order organ other our out over own oxygen page pain pair
parent part party pass past pattern pay people perhaps period person piece place plan plane plant
play please point police poor position possible pound power practice prepare present press pretty
price print private probable problem process produce product program promise proof protect prove
provide public put quart question quite race raise ran range rather reach read ready real reason
receive record region remember repeat reply report represent require rest result return rhythm ride
right ring rise rock roll room root round row rule run safe said salt same sand sat save saw say
scale science score sea search season seat second section see seed seem select self sell send
sense sent sentence separate serve set settle seven several shall shape share she shine shop
shore should shoulder shout show side sight sign similar since sing single sit six size skill skin
sky sleep slip smell smile so social soil soldier solution solve some son song sound south space
speak special speech speed spell spend spoke sport spot spread square stage stand start state stay
steam steel step stick stop store story straight stream strength stretch string student study
subject success such sudden sugar suggest suit supply support sure surface surprise swim system tail
take talk taste teach teacher team tell temperature ten term test than that the their them then
there these they thick thin thing think third this those though thought thousand three through throw
thus tie time tire to told tomorrow tone too tool top total touch toward track trade travel triangle
trip trouble truck try turn twenty two type under understand unit until up upon use usual
valley value vary very view visit voice wait walk want war was wash watch way we wear weather week
weight welcome well went were west what when where whether which while white who whole whose why
wife will win wire wish with woman women wonder word work world worry would write wrong year yes yet
you your zero
""".split()

NAMES = """
Ana Ben Carla David Emma Felix Grace Hugo Ida Jonas Kate Leo Maria Nina Oscar Paul Rosa Sam Tina
Victor Wendy Yusuf Zoe Alice Bob Clara Daniel Elena Frank Greta Henry Iris Jack Karim Laura Max
Nora Omar Petra Quinn Rita Simon Tom Uma Vera Walter Xenia Yara Adam Bella Chris Diana Eric Fiona
George Hannah Ivan Julia Kevin Linda Mark Nadia Olga Peter Rachel Sara Tim Ursula Vince Will Amir
Beth Cora Dmitri Ella Farah Gina Hassan Isabel John Kim Lars Mia Noah Olivia Priya Ravi Sofia Theo
Mei Chen Aisha Diego Ingrid Luca Marta Niko Pablo Raj Sven Tara Anna Luis Kai Jane Mary James
""".split()

COLORS = "red blue green yellow orange purple white black brown pink gray".split()

ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr st tr sh th sk".split()
VOWELS = "a e i o u a e i o ai oo ee".split()
CODAS = ["", "", "", "n", "r", "l", "s", "k", "m", "t", "x", "nd", "sh"]

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "the United Kingdom": "London",
    "Ireland": "Dublin",
    "Scotland": "Edinburgh",
    "Austria": "Vienna",
    "Switzerland": "Bern",
    "Belgium": "Brussels",
    "the Netherlands": "Amsterdam",
    "Denmark": "Copenhagen",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Hungary": "Budapest",
    "the Czech Republic": "Prague",
    "Romania": "Bucharest",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Morocco": "Rabat",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "South Korea": "Seoul",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "Australia": "Canberra",
    "New Zealand": "Wellington",
    "Canada": "Ottawa",
    "the United States": "Washington, D.C.",
    "Mexico": "Mexico City",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Chile": "Santiago",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Colombia": "Bogota",
    "Iceland": "Reykjavik",
    "Croatia": "Zagreb",
}

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "left": "right",
    "day": "night",
    "happy": "sad",
    "young": "old",
    "new": "old",
    "open": "closed",
    "full": "empty",
    "hard": "soft",
    "light": "dark",
    "early": "late",
    "rich": "poor",
    "strong": "weak",
    "good": "bad",
    "high": "low",
    "long": "short",
    "loud": "quiet",
    "near": "far",
    "wet": "dry",
    "true": "false",
    "first": "last",
    "inside": "outside",
    "black": "white",
    "clean": "dirty",
    "easy": "hard",
    "thick": "thin",
    "wide": "narrow",
    "love": "hate",
    "win": "lose",
    "begin": "end",
    "push": "pull",
    "yes": "no",
    "cold": "hot",
    "small": "big",
    "slow": "fast",
    "down": "up",
    "right": "left",
    "night": "day",
    "sad": "happy",
    "old": "new",
    "empty": "full",
    "soft": "hard",
    "dark": "light",
    "late": "early",
    "tall": "short",
    "heavy": "light",
    "sweet": "sour",
    "smooth": "rough",
    "north": "south",
    "east": "west",
}

THING_COLORS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a banana": "yellow",
    "the sun": "yellow",
    "blood": "red",
    "a tomato": "red",
    "an orange": "orange",
    "a carrot": "orange",
    "coal": "black",
    "milk": "white",
    "chocolate": "brown",
    "a lemon": "yellow",
    "a frog": "green",
    "a flamingo": "pink",
    "an elephant": "gray",
    "the sea": "blue",
    "a strawberry": "red",
    "a leaf": "green",
    "a raven": "black",
    "an eggplant": "purple",
    "a polar bear": "white",
    "a pumpkin": "orange",
}

ANIMAL_SOUNDS = {
    "a dog": "woof",
    "a cat": "meow",
    "a cow": "moo",
    "a duck": "quack",
    "a sheep": "baa",
    "a pig": "oink",
    "a lion": "roar",
    "a bee": "buzz",
    "a mouse": "squeak",
    "a frog": "ribbit",
    "an owl": "hoot",
    "a horse": "neigh",
    "a snake": "hiss",
    "a rooster": "cock-a-doodle-doo",
}

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November December").split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
