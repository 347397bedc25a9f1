r"""Units of quantities: names and powers from words.

    unit = {}
    unit_of_words("square miles per hour", unit, 1)                 # -1; unit is {"mi": 2, "h": -1}
"""
import re

from .text import Unread

UNIT_NAMES = {spelling: names.split()[0] for names in (
    "m meter metre|cm centimeter centimetre|mm millimeter millimetre|km kilometer kilometre|in inch inches|"
    "ft foot feet|yd yard|mi mile|g gram gramme|kg kilogram kilo|mg milligram|lb pound|oz ounce|"
    "l liter litre L|ml milliliter millilitre|gallon gal|s second sec|min minute|h hour hr|day|week|month|"
    "year yr|dollar $ usd|cent|degree deg|radian rad|percent pct percentage|unit|newton N n|joule J j|"
    "watt W w|volt V v|K kelvin|A amp ampere|Hz hertz|Pa pascal|C coulomb|T tesla|F farad|ohm|"
    "person people").split("|") for spelling in names.split()}
BARE_WORDS = {name for name in UNIT_NAMES if len(name) > 2} | set(          # units that need no \text{}
    "cm km kg mm ft sq mph am pm yuan students way ways points square cubic".split())
BARE_WORDS |= {f"{name}s" for name in BARE_WORDS}
FRACTION = re.compile(r"halves|(?:thir|quarter|\w*[fnxhe]th)[ds]?s\b|\bun\w+ly\b")
NO_UNIT = set(                                          # words of numbers, conditions, doubts and denials
    "hundred thousand million billion trillion dozen pair pairs couple half twice double doubled triple tripled "
    "halved squared cubed factorial times plus minus mod modulo base to negative positive more less least most over "
    "under above below than if unless except when only or but else other otherwise maybe perhaps probably is isn't "
    "are not no never false wrong incorrect i e x".split())
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def unit_of_words(phrase: str, unit: dict[str, int], sign: int) -> int:
    """Adds the units of a phrase to `unit`, powers times `sign`; returns the sign of what follows (-1 after "per").

    A phrase without a known unit is a unit of its own, "red and blue marbles". Raises Unread for one that may say more.
    """
    if NO_UNIT & set(re.findall(r"[\w']+", phrase)) or FRACTION.search(phrase) and not phrase.startswith("month"):
        raise Unread(phrase)
    power = 1
    for word in re.findall(r"/|[^\s/]+", phrase):
        name = word.rstrip(".,")
        if name == "mph":
            unit |= {"mi": 1, "h": -1}
        elif word in ("/", "per"):
            sign = -1
        elif name in POWERS:
            power = POWERS[name]
        elif found := UNIT_NAMES.get(name) or UNIT_NAMES.get(name.removesuffix("s")):
            unit[found] = unit.get(found, 0) + sign * power
            power = 1
        else:
            if not unit:                                # else the rest explains it: miles from City A
                unit[phrase] = 1
            break
    return sign
