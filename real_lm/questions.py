"""The questions: categories of things, asked for in several wordings, with all right items.

    python -m real_lm.questions [--out real_lm]         train, test_wordings, test_categories and asia.jsonl

train: TRAIN in the wordings ASKED. test_wordings: the same categories in the wordings REWORDED. test_categories: TEST,
which are never trained, in the wordings ASKED. asia: one question of test_wordings again, to be asked many times.
FORM is for the supervised warm-up of make.py alone: it shows how an answer looks, and asks for nothing that is in TRAIN
or TEST.

A category is (one of them, many of them, items). Items are separated by commas; several names of one item by "|", its
label first. Regular plurals need no name of their own (task.py).
"""
import argparse
from pathlib import Path

from files import write_jsonl

ASKED = ("Give an example of {one}.", "Think of {one}. Which one is it?", "Tell me {one}.",
         "What is {one}? Answer with just one.")
REWORDED = ("Name {one}.", "Pick one of the many {many}.")

TRAIN = {
    "fruit": ("a fruit", "fruits", """
        apple, apricot, avocado, banana, blackberry, blackcurrant|currant|redcurrant, blueberry, boysenberry, cherry,
        clementine|mandarin|tangerine|satsuma, coconut, cranberry, date, dragon fruit|dragonfruit|pitaya, durian,
        elderberry, fig, gooseberry, grape, grapefruit, guava, jackfruit, kiwi|kiwifruit|kiwi fruit, kumquat, lemon,
        lime, lychee|litchi, mango, melon|cantaloupe|honeydew, mulberry, nectarine, olive, orange, papaya|pawpaw,
        passion fruit|passionfruit, peach, pear, persimmon, pineapple, plantain, plum, pomegranate, pomelo, quince,
        raspberry, star fruit|starfruit|carambola, strawberry, tamarind, tomato, watermelon"""),
    "vegetable": ("a vegetable", "vegetables", """
        artichoke, arugula|rocket, asparagus, bean|green bean|string bean, beet|beetroot, bok choy|pak choi, broccoli,
        brussels sprout, cabbage, carrot, cauliflower, celery, chard|swiss chard, chickpea, collard|collard greens,
        corn|sweet corn|sweetcorn|maize, cucumber, eggplant|aubergine, endive|chicory, fennel, garlic, kale, kohlrabi,
        leek, lentil, lettuce, mushroom, okra, onion, parsnip, pea|green pea|snow pea, pepper|bell pepper|green
        pepper|red pepper, potato, pumpkin, radish, rhubarb, rutabaga|swede, shallot, spinach, squash|butternut squash,
        sweet potato, tomato, turnip, watercress, yam, zucchini|courgette"""),
    "wild animal": ("a wild animal", "wild animals", """
        alligator, anteater, antelope|gazelle|impala, ape, armadillo, baboon, badger, bat, bear|polar bear|grizzly
        bear|black bear|brown bear|grizzly, beaver, bobcat|lynx, bison|buffalo, camel, caribou|reindeer, cheetah,
        chimpanzee|chimp, cougar|puma|mountain lion, coyote, crocodile, deer, dingo, dolphin, eagle, elephant|african
        elephant, elk, ferret, fox|red fox, frog, giraffe, gorilla, hare, hawk, hedgehog, hippopotamus|hippo, hyena,
        iguana, jackal, jaguar, kangaroo, koala|koala bear, lemur, leopard|snow leopard, lion, lizard, llama, meerkat,
        mongoose, monkey, moose, opossum|possum, orangutan, ostrich, otter, owl, panda|giant panda, panther, parrot,
        penguin, porcupine, rabbit, raccoon, rat, rhinoceros|rhino, seal, shark, skunk, sloth, snake|python|cobra,
        squirrel, tapir, tiger, turtle|tortoise, wallaby, walrus, warthog, weasel, whale, wild boar|boar, wildebeest,
        wolf|gray wolf, wolverine, wombat, yak, zebra"""),
    "farm animal": ("a farm animal", "farm animals", """
        alpaca, bee|honeybee, buffalo, cat, chicken|hen|rooster|chick, cow|cattle|bull|calf|dairy cow, dog|sheepdog,
        donkey, duck, emu, goat, goose|geese, guinea fowl, horse|pony|mare|stallion, llama, mule, ostrich, ox|oxen,
        pig|hog|swine|piglet|sow, quail, rabbit, sheep|lamb|ram|ewe, turkey"""),
    "bird": ("a bird", "birds", """
        albatross, blackbird, blue jay|bluejay|jay, bluebird, canary, cardinal|northern cardinal, chickadee,
        chicken|hen|rooster, cockatoo, condor, cormorant, crane, crow, cuckoo, dove, duck|mallard, eagle|bald
        eagle|golden eagle, egret, emu, falcon|peregrine falcon, finch|goldfinch, flamingo, goose|geese, grouse,
        gull|seagull, hawk, heron, hummingbird, ibis, kestrel, kingfisher, kiwi, kookaburra, lark|skylark, loon,
        macaw, magpie, martin, mockingbird, nightingale, oriole, osprey, ostrich, owl|barn owl|snowy owl, parakeet,
        parrot, partridge, peacock|peahen, pelican, penguin|emperor penguin, pheasant, pigeon, plover, puffin, quail,
        raven, roadrunner, robin|american robin, sandpiper, sparrow|house sparrow, starling, stork, swallow, swan,
        swift, tern, thrush, tit|blue tit, toucan, turkey, vulture|buzzard, warbler, woodpecker, wren"""),
    "insect": ("an insect", "insects", """
        ant|fire ant, aphid, bed bug|bedbug, bee|honeybee|honey bee|bumblebee, beetle|scarab|dung beetle,
        butterfly|monarch|monarch butterfly, caterpillar, cicada, cockroach|roach, cricket, damselfly, dragonfly,
        earwig, firefly|lightning bug|glowworm, flea, fly|housefly|house fly|fruit fly, gnat, grasshopper, hornet,
        katydid, lacewing, ladybug|ladybird|lady beetle, leafhopper, locust, louse|lice, mayfly, midge, mosquito,
        moth, praying mantis|mantis, silverfish, stick insect, stink bug, termite, thrips, wasp|yellow jacket,
        weevil"""),
    "color": ("a color", "colors", """
        amber, aqua, azure, beige, black, blue|sky blue|dark blue|light blue|royal blue, bronze, brown, burgundy,
        charcoal, copper, coral, cream, crimson, cyan, emerald, fuchsia, gold|golden, gray|grey, green|dark green|light
        green|lime green, indigo, ivory, khaki, lavender, lilac, lime, magenta, maroon, mauve, mint, navy|navy blue,
        ochre, olive, orange, peach, pink|hot pink, plum, purple, red|dark red, rose, ruby, rust, salmon, scarlet,
        sepia, silver, tan, teal, turquoise, violet, white, yellow"""),
    "instrument": ("a musical instrument", "musical instruments", """
        accordion, bagpipe, balalaika, banjo, bass|double bass|bass guitar, bassoon, bell, bongo, bugle, castanet,
        cello, clarinet, conga, cornet, cowbell, cymbal, didgeridoo, drum|snare drum|bass drum|drum set, dulcimer,
        euphonium, fiddle|violin, flute, french horn|horn, glockenspiel, gong, guitar|electric guitar|acoustic guitar,
        harmonica, harp, harpsichord, kazoo, keyboard, lute, lyre, mandolin, maraca, marimba, oboe, ocarina, organ|pipe
        organ, pan flute, piano|grand piano, piccolo, recorder, saxophone|sax, sitar, synthesizer, tabla, tambourine,
        timpani, triangle, trombone, trumpet, tuba, ukulele, vibraphone, viola, whistle, xylophone, zither"""),
    "sport": ("a sport", "sports", """
        american football, archery, athletics|track and field|track, badminton, baseball, basketball,
        biathlon, billiards|pool|snooker, bowling, boxing, canoeing|kayaking, cricket, curling, cycling|biking, darts,
        diving, equestrian|horse riding|horseback riding, fencing, field hockey, figure skating|skating|ice skating,
        football|soccer, golf, gymnastics, handball, hiking, hockey|ice hockey, judo, karate, lacrosse, marathon,
        martial arts, netball, polo, racing|car racing, rock climbing|climbing, rowing, rugby, running|sprinting,
        sailing, shooting, skateboarding, skiing, snowboarding, softball, squash, sumo, surfing, swimming, table
        tennis|ping pong, taekwondo, tennis, triathlon, volleyball|beach volleyball, water polo,
        weightlifting, wrestling"""),
    "country in Europe": ("a country in Europe", "countries in Europe", """
        albania, andorra, armenia, austria, azerbaijan, belarus, belgium, bosnia|bosnia and herzegovina, bulgaria,
        croatia, cyprus, czech republic|czechia, denmark, estonia, finland, france, georgia, germany, greece, hungary,
        iceland, ireland, italy, kazakhstan, kosovo, latvia, liechtenstein, lithuania, luxembourg, malta, moldova,
        monaco, montenegro, netherlands|holland, north macedonia|macedonia, norway, poland, portugal, romania, russia,
        san marino, serbia, slovakia, slovenia, spain, sweden, switzerland, turkey, ukraine,
        united kingdom|uk|england|scotland|wales|great britain|britain, vatican|vatican city"""),
    "country in Asia": ("a country in Asia", "countries in Asia", """
        afghanistan, armenia, azerbaijan, bahrain, bangladesh, bhutan, brunei, cambodia, china, cyprus, east
        timor|timor leste, georgia, india, indonesia, iran, iraq, israel, japan, jordan, kazakhstan, kuwait, kyrgyzstan,
        laos, lebanon, malaysia, maldives, mongolia, myanmar|burma, nepal, north korea, oman, pakistan, palestine,
        philippines, qatar, russia, saudi arabia, singapore, south korea|korea, sri lanka, syria, taiwan, tajikistan,
        thailand, turkey, turkmenistan, united arab emirates|uae, uzbekistan, vietnam, yemen"""),
    "state of the USA": ("a state of the USA", "states of the USA", """
        alabama, alaska, arizona, arkansas, california, colorado, connecticut, delaware, florida, georgia, hawaii,
        idaho, illinois, indiana, iowa, kansas, kentucky, louisiana, maine, maryland, massachusetts, michigan,
        minnesota, mississippi, missouri, montana, nebraska, nevada, new hampshire, new jersey, new mexico, new
        york, north carolina, north dakota, ohio, oklahoma, oregon, pennsylvania, rhode island, south carolina, south
        dakota, tennessee, texas, utah, vermont, virginia, washington, west virginia, wisconsin, wyoming"""),
    "chemical element": ("a chemical element", "chemical elements", """
        actinium, aluminum|aluminium, americium, antimony, argon, arsenic, astatine, barium, berkelium, beryllium,
        bismuth, bohrium, boron, bromine, cadmium, calcium, californium, carbon, cerium, cesium|caesium, chlorine,
        chromium, cobalt, copernicium, copper, curium, darmstadtium, dubnium, dysprosium, einsteinium, erbium,
        europium, fermium, flerovium, fluorine, francium, gadolinium, gallium, germanium, gold, hafnium, hassium,
        helium, holmium, hydrogen, indium, iodine, iridium, iron, krypton, lanthanum, lawrencium, lead, lithium,
        livermorium, lutetium, magnesium, manganese, meitnerium, mendelevium, mercury, molybdenum, moscovium,
        neodymium, neon, neptunium, nickel, nihonium, niobium, nitrogen, nobelium, oganesson, osmium, oxygen,
        palladium, phosphorus, platinum, plutonium, polonium, potassium, praseodymium, promethium, protactinium,
        radium, radon, rhenium, rhodium, roentgenium, rubidium, ruthenium, rutherfordium, samarium, scandium,
        seaborgium, selenium, silicon, silver, sodium, strontium, sulfur|sulphur, tantalum, technetium, tellurium,
        tennessine, terbium, thallium, thorium, thulium, tin, titanium, tungsten, uranium, vanadium, xenon, ytterbium,
        yttrium, zinc, zirconium"""),
    "month": ("a month of the year", "months of the year", """
        january, february, march, april, may, june, july, august, september, october, november, december"""),
    "day": ("a day of the week", "days of the week", """
        monday, tuesday, wednesday, thursday, friday, saturday, sunday"""),
    "part of the body": ("a part of the body", "parts of the body", """
        abdomen|belly|stomach, ankle, appendix, arm, armpit, artery, back, bladder, blood, bone, brain, breast, buttock,
        calf, cheek, chest, chin, ear, elbow, eye, eyebrow, eyelash, eyelid, face, fingernail|nail, finger, fist,
        foot|feet, forehead, gum, hair, hand, head, heart, heel, hip, intestine, jaw, kidney, knee, knuckle, leg, lip,
        liver, lung, mouth, muscle, neck, nose, nostril, palm, pancreas, rib, shin, shoulder, skin, skull, spine,
        spleen, temple, thigh, throat, thumb, toe, tongue, tonsil, tooth|teeth, torso, vein, waist, wrist"""),
    "piece of clothing": ("a piece of clothing", "pieces of clothing", """
        apron, belt, bikini, blazer, blouse, boot, bra, bow tie, cap|baseball cap, cape, cardigan, cloak, coat|overcoat,
        dress|gown, glove, hat, hoodie, jacket|leather jacket, jeans, kilt, kimono, leggings, mitten, nightgown,
        pajamas|pyjamas, panties, pants|trousers, poncho, raincoat, robe|bathrobe, sandal, sari, scarf,
        shirt|t shirt|tshirt|tee shirt|dress shirt, shoe|sneaker, shorts, skirt, slipper, sock, stocking, suit,
        sweater|pullover|jumper, sweatshirt, swimsuit|bathing suit, tank top|top, tie|necktie, tights, tunic, tuxedo,
        underpants|underwear|boxers|briefs, undershirt, uniform, vest|waistcoat"""),
    "job": ("a job", "jobs", """
        accountant, actor|actress, analyst|data analyst, architect, artist|painter, astronaut, athlete, author|writer,
        baker, banker, barber|hairdresser|hairstylist, barista, bartender, biologist, bricklayer, broker, builder, bus
        driver|driver|taxi driver|truck driver, butcher, carpenter, cashier, chef|cook, chemist, cleaner|janitor, clerk,
        coach, consultant, counselor, dancer, dentist, designer|graphic designer, detective, director, doctor|physician,
        economist, editor, electrician, engineer|software engineer|civil engineer, farmer, firefighter|fireman,
        fisherman, florist, gardener, geologist, guard|security guard, historian, interpreter, investor,
        journalist|reporter, judge, lawyer|attorney, librarian, lifeguard, mail carrier|mailman|postman, manager,
        mathematician, mechanic, miner, model, musician, nanny|babysitter, nurse, optician, paramedic, pharmacist,
        photographer, physicist, pilot, plumber, poet, police officer|policeman|police, politician, professor,
        programmer|developer|software developer, psychiatrist, psychologist, receptionist, sailor, salesperson|salesman,
        scientist, secretary, singer, soldier, surgeon, tailor, teacher, therapist, translator, tutor,
        veterinarian|vet, waiter|waitress|server, web developer, welder, zookeeper"""),
    "drink": ("a drink", "drinks", """
        beer|ale|lager, bourbon, brandy, cappuccino, champagne, cider, cocktail, coffee|iced coffee, cognac,
        cola|coke|coca cola|pepsi, daiquiri, eggnog, energy drink, espresso, gin, ginger ale, gin and tonic, hot
        chocolate|cocoa, juice|orange juice|apple juice|fruit juice, kombucha, latte, lemonade, limeade, liqueur,
        margarita, martini, mead, milk, milkshake, mojito, mocha, punch, root beer, rum, sake, sangria, smoothie,
        soda|soft drink|sprite, sherry, tea|green tea|iced tea|black tea, tequila, tonic|tonic water, vodka, water,
        whiskey|whisky|scotch, wine|red wine|white wine"""),
    "vehicle": ("a vehicle", "vehicles", """
        airplane|plane|aeroplane|aircraft|jet, ambulance, barge, bicycle|bike, boat|motorboat|speedboat|sailboat,
        bulldozer, bus|school bus, camper, canoe, car|automobile|sports car|sedan, carriage, cart|go kart, excavator,
        ferry, fire truck|fire engine, forklift, glider, golf cart, helicopter, hot air balloon|balloon, hovercraft,
        jeep, kayak, limousine|limo, lorry|truck|pickup truck|pickup, moped, motorcycle|motorbike, police car, raft,
        rickshaw, rocket, scooter, segway, ship, skateboard, sled|sledge|sleigh, snowmobile, spaceship|spacecraft,
        submarine, subway|metro, suv, tank, taxi|cab, tractor, train|locomotive, tram|streetcar, tricycle, trolley,
        unicycle, van|minivan, wagon, yacht"""),
}
TEST = {
    "flower": ("a flower", "flowers", """
        amaryllis, anemone, aster, azalea, begonia, bluebell, buttercup, camellia, carnation, cherry blossom,
        chrysanthemum|mum, clover, cornflower, cosmos, crocus, cyclamen, daffodil|narcissus, dahlia, daisy, dandelion,
        delphinium, edelweiss, forget me not, foxglove, freesia, fuchsia, gardenia, geranium, gerbera, gladiolus,
        heather, hibiscus, honeysuckle, hyacinth, hydrangea, iris, jasmine, larkspur, lavender, lilac, lily|water
        lily, lotus, lupine, magnolia, marigold, morning glory, orchid, pansy, peony, periwinkle, petunia, phlox,
        poinsettia, poppy, primrose, rhododendron, rose|red rose, snapdragon, snowdrop, sunflower, sweet pea, tulip,
        verbena, violet, wisteria, zinnia"""),
    "country in Africa": ("a country in Africa", "countries in Africa", """
        algeria, angola, benin, botswana, burkina faso, burundi, cameroon, cape verde, central african republic, chad,
        comoros, congo|republic of the congo|democratic republic of the congo|drc, djibouti, egypt, equatorial guinea,
        eritrea, eswatini|swaziland, ethiopia, gabon, gambia, ghana, guinea, guinea bissau, ivory coast|cote divoire,
        kenya, lesotho, liberia, libya, madagascar, malawi, mali, mauritania, mauritius, morocco, mozambique, namibia,
        niger, nigeria, rwanda, sao tome and principe|sao tome, senegal, seychelles, sierra leone, somalia, south
        africa, south sudan, sudan, tanzania, togo, tunisia, uganda, zambia, zimbabwe"""),
    "tree": ("a tree", "trees", """
        acacia, alder, almond, apple, ash, aspen, bamboo, banyan, baobab, beech, birch, cedar, cherry, chestnut,
        cottonwood, cypress, dogwood, ebony, elder, elm, eucalyptus, fig, fir|douglas fir, ginkgo, hawthorn, hazel,
        hemlock, hickory, holly, ironwood, juniper, larch, laurel, lemon, linden|basswood, locust, magnolia, mahogany,
        mango, mangrove, maple|sugar maple|red maple|japanese maple, mulberry, oak|oak tree|red oak|white oak, olive,
        orange, palm|palm tree|coconut, pear, pecan, pine|pine tree|white pine, plum, poplar, redwood|sequoia, rowan,
        rubber, spruce, sycamore, teak, tulip, walnut, willow|weeping willow, yew"""),
    "piece of furniture": ("a piece of furniture", "pieces of furniture", """
        armchair, armoire|wardrobe|closet, bar stool|stool, bassinet, bed|bunk bed, bench, bookcase|bookshelf,
        buffet|sideboard, cabinet|filing cabinet, chair|office chair|rocking chair|dining chair, chaise longue|chaise,
        chest, coat rack, coffee table, couch|sofa|loveseat, cradle|crib, cupboard, desk, dining table, dresser|chest of
        drawers, end table, futon, hutch, lamp, mattress, mirror, nightstand|bedside table, ottoman|footstool, recliner,
        rug, shelf, sofa bed, table, tv stand, vanity"""),
    "language": ("a language", "languages", """
        afrikaans, albanian, amharic, arabic, armenian, aramaic, azerbaijani, basque, bengali, bosnian, bulgarian,
        burmese, cantonese, catalan, chinese|mandarin|mandarin chinese, croatian, czech, danish, dutch, english,
        esperanto, estonian, finnish, french, gaelic, georgian, german, greek, gujarati, hausa, hawaiian, hebrew, hindi,
        hungarian, icelandic, igbo, indonesian, irish, italian, japanese, javanese, kannada, kazakh, khmer, korean,
        kurdish, lao, latin, latvian, lithuanian, malay, malayalam, maltese, maori, marathi, mongolian, nepali,
        norwegian, pashto, persian|farsi, polish, portuguese, punjabi, quechua, romanian, russian, sanskrit, serbian,
        sinhala, slovak, slovenian, somali, spanish, sundanese, swahili, swedish, tagalog|filipino, tamil, telugu,
        thai, tibetan, turkish, ukrainian, urdu, uzbek, vietnamese, welsh, xhosa, yiddish, yoruba, zulu"""),
    "breed of dog": ("a breed of dog", "breeds of dogs", """
        afghan hound, airedale terrier, akita, alaskan malamute|malamute, australian shepherd, basset hound|basset,
        beagle, bernese mountain dog, bichon frise, bloodhound, border collie, boston terrier, boxer, bulldog|english
        bulldog, bull terrier, bullmastiff, cavalier king charles spaniel, chihuahua, chow chow|chow, cocker spaniel,
        collie|rough collie, corgi|pembroke welsh corgi, dachshund, dalmatian, doberman|doberman pinscher, english
        setter, foxhound, french bulldog, german shepherd, golden retriever, great dane, greyhound, havanese, husky|
        siberian husky, irish setter, irish wolfhound, jack russell|jack russell terrier, labrador retriever|labrador|
        lab, lhasa apso, maltese, mastiff, newfoundland, papillon, pekingese, pit bull|pitbull, pointer, pomeranian,
        poodle, portuguese water dog, pug, rottweiler, saint bernard|st bernard, samoyed, schnauzer|miniature
        schnauzer, scottish terrier, setter, shetland sheepdog|sheltie, shiba inu, shih tzu, spaniel, terrier,
        vizsla, weimaraner, west highland terrier|westie, whippet, yorkshire terrier|yorkie"""),
    "planet": ("a planet", "planets", """
        mercury, venus, earth, mars, jupiter, saturn, uranus, neptune"""),
    "dance": ("a dance", "dances", """
        ballet, ballroom, belly dance, bolero, breakdance|breakdancing, cha cha|cha cha cha, charleston, conga,
        disco, flamenco, foxtrot, hip hop, hula, jazz|jazz dance, jig, jitterbug, jive, lambada, limbo, lindy hop,
        macarena, mambo, mazurka, merengue, minuet, paso doble, polka, polonaise, quickstep, rumba, salsa, samba,
        square dance, swing, tango, tap|tap dance, twist, waltz|viennese waltz, zumba"""),
}
FORM = {
    "tool": ("a tool", "tools", "hammer, screwdriver, saw, wrench, drill, pliers, chisel, shovel, axe, rake, ladder"),
    "shape": ("a shape", "shapes", "circle, square, triangle, rectangle, pentagon, hexagon, oval, cube, sphere, cone"),
    "gemstone": ("a gemstone", "gemstones", "diamond, ruby, emerald, sapphire, pearl, opal, topaz, amethyst, jade"),
    "room": ("a room of a house", "rooms of a house", """
        kitchen, bedroom, bathroom, living room, dining room, attic, basement, garage, hallway, pantry"""),
    "weather": ("a kind of weather", "kinds of weather", "rain, snow, sunshine, wind, fog, hail, thunderstorm, storm"),
    "spice": ("a spice", "spices", "cinnamon, cumin, paprika, turmeric, ginger, nutmeg, clove, saffron, cardamom"),
    "toy": ("a toy", "toys", "doll, teddy bear, ball, kite, puzzle, yo-yo, building blocks, robot, spinning top"),
    "fish": ("a fish", "fish", "salmon, tuna, trout, cod, carp, catfish, sardine, mackerel, herring, goldfish, eel"),
    "school subject": ("a school subject", "school subjects", """
        mathematics, history, biology, chemistry, physics, geography, art, music, physical education, economics"""),
    "feeling": ("a feeling", "feelings", "joy, anger, fear, sadness, surprise, love, envy, pride, shame, hope, guilt"),
    "capital": ("a capital city", "capital cities", """
        Paris, London, Berlin, Rome, Madrid, Tokyo, Beijing, Moscow, Cairo, Ottawa, Canberra, Athens, Vienna, Lima"""),
    "utensil": ("a kitchen utensil", "kitchen utensils", """
        knife, fork, spoon, spatula, whisk, ladle, tongs, peeler, grater, rolling pin, frying pan, cutting board"""),
}


def questions(categories: dict[str, tuple[str, str, str]], wordings: tuple[str, ...]) -> list[dict]:
    """Every category in every wording, as rows that task.py understands."""
    return [{"id": f"{category} {number}", "problem": wording.format(one=one, many=many), "category": category,
             "items": [" ".join(item.split()).replace("| ", "|") for item in items.split(",")]}
            for category, (one, many, items) in categories.items() for number, wording in enumerate(wordings, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default="real_lm", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    sources = {"train": (TRAIN, ASKED), "test_wordings": (TRAIN, REWORDED), "test_categories": (TEST, ASKED),
               "asia": ({"country in Asia": TRAIN["country in Asia"]}, REWORDED[:1])}
    for name, (categories, wordings) in sources.items():
        rows = questions(categories, wordings)
        write_jsonl(out / f"{name}.jsonl", rows)
        print(f"{out / name}.jsonl: {len(rows)} questions, "
              f"{sum(len(row['items']) for row in rows) / len(rows):.0f} right items each")


if __name__ == "__main__":
    main()
