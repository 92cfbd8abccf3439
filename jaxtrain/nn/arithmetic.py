"""A calculator inside the policy: the results of sums are not the policy's to choose.

The calculator changes the policy's law and nothing else. Behind a sum's `=`, and behind its `>>`,
all tokens that begin a number give their mass to the first character of the right one; space and
`$` in front of it, or no number at all, stay the policy's choice. The other characters are certain,
and no digit follows the last. A draw and its log-probability stay what they were, of another law.

Numbers are decimals, `mantissa * 10^exponent`, of integers that no float touches. What does not fit
(a mantissa above 2^31 - 1, a quotient that does not end) is left to the policy, never rounded.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain import calculator
from jaxtrain.calculator import LEAD, MAX_OPEN, RESULT, Calculator
from jaxtrain.structs import Array, choose

LARGEST = 2**31 - 1
POWERS = [10**i for i in range(10)]
NUM_DIGITS = 10  # of a quotient, behind the digits that its dividend has
MAX_LENGTH = 16  # characters of a result
FREE, DUE, BEGUN, ENDED, SHUT = range(5)  # where the writing of a result is; SHUT: `>` behind it


class Decimal(NamedTuple):
    """mantissa * 10^exponent"""

    mantissa: Array  # int32
    exponent: Array  # int32


class Sums(NamedTuple):
    """What `b` lanes have read of a sum: total + sign * product (* or /) number, a level each."""

    state: Array  # [b] int32, of the automaton in `calculator`
    number: Decimal  # [b]
    total: Decimal  # [b levels]
    product: Decimal  # [b levels]
    sign: Array  # [b levels] int32
    is_over: Array  # [b levels] bool, the product is divided next
    is_ok: Array  # [b] bool, everything fits
    num_operators: Array  # [b] int32
    is_added: Array  # [b] bool, there is a plus or a minus
    is_percent: Array  # [b] bool
    result: Decimal  # [b]
    stage: Array  # [b] int32, FREE to SHUT
    at: Array  # [b] int32, characters of the result that are written


def no_sums(num_lanes: int) -> Sums:
    """Make the state of lanes at the beginning of a step."""
    none, no = jnp.zeros(num_lanes, jnp.int32), jnp.zeros(num_lanes, bool)
    levels = jnp.zeros((num_lanes, 1 + MAX_OPEN), jnp.int32)
    zero = Decimal(none, none)
    return Sums(
        state=none,
        number=zero,
        total=Decimal(levels, levels),
        product=Decimal(levels + 1, levels),
        sign=levels + 1,
        is_over=levels > 0,
        is_ok=~no,
        num_operators=none,
        is_added=no,
        is_percent=no,
        result=zero,
        stage=none,
        at=none,
    )


def constrain(tables: Calculator, sums: Sums, logits: Array, temperature: Array) -> Array:
    """Change the law of the next token, logits [b V], to what the calculator allows."""
    stage, size = sums.stage[:, None], logits.shape[1]
    is_due, is_begun = stage == DUE, stage == BEGUN
    is_closed = is_begun | (is_due & tables.begins) | ((stage == ENDED) & tables.goes_on)

    # All that begins a number, together, at this temperature.
    numbers = jnp.where(tables.begins, logits, -jnp.inf)
    top = jnp.max(numbers, axis=1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    mass = jnp.sum(jnp.exp((numbers - top) / jnp.maximum(temperature, 1e-30)), axis=1)
    mass = top + temperature * jnp.log(mass)[:, None]

    char = jnp.asarray(tables.result)[character(sums.result, sums.at)]
    is_right = (is_due | is_begun) & (jnp.arange(size) == char[:, None])
    logits = jnp.where(is_closed, -jnp.inf, logits)
    return jnp.where(is_right, jnp.where(is_due, mass, 0.0), logits)


def advance(tables: Calculator, sums: Sums, token: Array) -> Sums:
    """Read a token of every lane [b], drawn under the law of `constrain`."""
    # What was written of a result.
    is_due = (sums.stage == DUE) & jnp.asarray(tables.begins)[token]
    is_written = is_due | (sums.stage == BEGUN)
    at = jnp.where(is_written, sums.at + 1, 0)
    is_last = at >= length_of(sums.result)
    stage = jnp.where(is_last, ENDED, BEGUN)

    # Its bytes, one by one.
    spelt = jnp.asarray(tables.spelt)[token]
    read, _ = jax.lax.scan(lambda s, byte: (read_byte(tables, s, byte), None), sums, spelt.T)
    return read._replace(stage=jnp.where(is_written, stage, read.stage), at=at)


def read_byte(tables: Calculator, sums: Sums, byte: Array) -> Sums:
    """Read one byte of every lane [b]; -1: none."""
    # Nothing is known before a sum begins.
    is_there, old = byte >= 0, sums
    fresh = no_sums(len(byte))
    fresh = fresh._replace(state=sums.state, result=sums.result, stage=sums.stage, at=sums.at)
    sums = choose(jnp.asarray(tables.is_outside)[sums.state], fresh, sums)
    action = jnp.where(is_there, jnp.asarray(tables.action)[sums.state, byte], calculator.NOTHING)
    level = jnp.asarray(tables.level)[sums.state][:, None]
    here, inner = (jnp.arange(1 + MAX_OPEN) == x for x in (level, level + 1))
    (product, is_product), (total, is_total) = come_to(sums, here)

    # The number being read.
    is_digit = action < calculator.NOTHING
    is_fit = ~is_digit | (sums.number.mantissa <= (LARGEST - 9) // 10)
    m = jnp.where(is_digit, sums.number.mantissa * 10 + action % 10, sums.number.mantissa)
    is_fraction = is_digit & (action >= calculator.FRACTION)
    e = sums.number.exponent - is_fraction - 2 * (action == calculator.PERCENT)

    # Operators close a product, plus and minus the total too; a bracket is a number in the end.
    is_over = action == calculator.OVER
    is_times = is_over | (action == calculator.TIMES)
    is_minus = action == calculator.MINUS
    is_plus = is_minus | (action == calculator.PLUS)
    kinds = calculator.NEGATE, calculator.OPEN, calculator.CLOSE, calculator.EQUALS
    is_negated, is_open, is_close, is_equal = (action == kind for kind in kinds)
    zero, one = (Decimal(jnp.full_like(m, x), jnp.zeros_like(m)) for x in (0, 1))
    number = choose(is_times | is_plus | is_open, zero, Decimal(m, e))
    inner &= is_open[:, None]
    put_total, put_product = (here & x[:, None] for x in (is_plus, is_times))
    is_first = put_total | inner  # a new product begins
    put_sign = here & (is_plus | is_negated)[:, None]
    sign = jnp.where(is_minus | is_negated, -1, 1)[:, None]

    def put(x: Decimal, where: Array, new: Decimal) -> Decimal:
        return jax.tree.map(lambda a, b: jnp.where(where, b[:, None], a), x, new)

    is_ok = sums.is_ok & is_fit & (is_product | ~is_times)
    is_ok &= is_total | ~(is_plus | is_close | is_equal)

    # Is there a result, and is it sure? Else, does what was written leave all as it is?
    is_sure = is_ok & (sums.num_operators > 0) & ~(sums.is_added & sums.is_percent)
    is_sure &= is_equal & (length_of(total) <= MAX_LENGTH)
    # A tokenizer may have no token for a minus or a point.
    has_minus, has_point = (tables.result[RESULT.index(char)] >= 0 for char in "-.")
    is_sure &= (has_minus | (total.mantissa >= 0)) & (has_point | (total.exponent >= 0))
    is_lead, is_point = (jnp.any(byte[:, None] == jnp.array([*x]), 1) for x in (LEAD, b".,"))
    stays = ((sums.stage == DUE) & is_lead) | ((sums.stage == ENDED) & is_point)
    # Behind `>>` the result is due again.
    ended = jnp.select([sums.stage == ENDED, sums.stage == SHUT], [SHUT, DUE], FREE)
    stage = jnp.where(byte == ord(">"), ended, jnp.where(stays, sums.stage, FREE))
    new = Sums(
        state=jnp.asarray(tables.state)[sums.state, byte],
        number=choose(is_close, total, number),
        total=put(put(sums.total, put_total, total), inner, zero),
        product=put(put(sums.product, put_product, product), is_first, one),
        sign=jnp.where(put_sign, sign, jnp.where(inner, 1, sums.sign)),
        is_over=jnp.where(put_product, is_over[:, None], sums.is_over & ~is_first),
        is_ok=is_ok,
        num_operators=sums.num_operators + is_times + is_plus,
        is_added=sums.is_added | is_plus,
        is_percent=sums.is_percent | (action == calculator.PERCENT),
        result=choose(is_equal, total, sums.result),
        stage=jnp.where(is_sure, DUE, stage),
        at=sums.at,
    )
    return choose(is_there, new, old)


def come_to(sums: Sums, here: Array) -> tuple[tuple[Decimal, Array], tuple[Decimal, Array]]:
    """Return ((product, does it fit?), (total, does it?)) of a level [b levels], the number in."""
    parts = sums.total, sums.product, sums.sign, sums.is_over.astype(jnp.int32)
    pick = partial(jax.tree.map, lambda x: jnp.sum(jnp.where(here, x, 0), axis=1))
    total, product, sign, is_over = map(pick, parts)
    ways = divide(product, sums.number), multiply(product, sums.number)
    product, is_product = choose(is_over > 0, *ways)
    total, is_total = add(total, product._replace(mantissa=sign * product.mantissa))
    return (product, is_product), (total, is_product & is_total)


def strip(x: Decimal) -> Decimal:
    """Drop the zeros at a mantissa's end; zero has exponent 0."""
    m, e = x
    for num in (8, 4, 2, 1):
        is_zero = m % POWERS[num] == 0
        m, e = jnp.where(is_zero, m // POWERS[num], m), jnp.where(is_zero, e + num, e)
    return Decimal(m, jnp.where(m == 0, 0, e))


def multiply(x: Decimal, y: Decimal) -> tuple[Decimal, Array]:
    """Return (x * y, does it fit?)."""
    x, y = strip(x), strip(y)
    is_fit = jnp.abs(x.mantissa) <= LARGEST // jnp.maximum(jnp.abs(y.mantissa), 1)
    return strip(Decimal(x.mantissa * y.mantissa, x.exponent + y.exponent)), is_fit


def add(x: Decimal, y: Decimal) -> tuple[Decimal, Array]:
    """Return (x + y, does it fit?)."""
    x, y = strip(x), strip(y)
    # Zero has any exponent.
    first = jnp.where(x.mantissa == 0, y.exponent, x.exponent)
    second = jnp.where(y.mantissa == 0, x.exponent, y.exponent)
    low, is_fit, aligned = jnp.minimum(first, second), True, []
    for m, e in ((x.mantissa, first), (y.mantissa, second)):
        power = jnp.asarray(POWERS, jnp.int32)[jnp.clip(e - low, 0, len(POWERS) - 1)]
        is_fit &= (e - low < len(POWERS)) & (jnp.abs(m) <= LARGEST // power)
        aligned.append(m * power)
    is_fit &= jnp.abs(aligned[0]) <= LARGEST - jnp.abs(aligned[1])
    return strip(Decimal(aligned[0] + aligned[1], low)), is_fit


def divide(x: Decimal, y: Decimal) -> tuple[Decimal, Array]:
    """Return (x / y, does it fit, ended and known?)."""
    x, y = strip(x), strip(y)
    divisor, e = jnp.abs(y.mantissa), x.exponent - y.exponent
    is_fit, divisor = divisor > 0, jnp.maximum(divisor, 1)

    def more(_, carry: tuple) -> tuple:
        quotient, rest, e, is_fit = carry
        is_left, tenths = rest > 0, rest * 10
        is_fit &= ~is_left | ((rest <= LARGEST // 10) & (quotient <= (LARGEST - 9) // 10))
        quotient = jnp.where(is_left, quotient * 10 + tenths // divisor, quotient)
        return quotient, jnp.where(is_left, tenths % divisor, rest), e - is_left, is_fit

    # Long division, until nothing is left.
    size = jnp.abs(x.mantissa)
    first = size // divisor, size % divisor, e, is_fit
    quotient, rest, e, is_fit = jax.lax.fori_loop(0, NUM_DIGITS, more, first)
    sign = jnp.sign(x.mantissa) * jnp.sign(y.mantissa)
    return strip(Decimal(sign * quotient, e)), is_fit & (rest == 0)


def places(x: Decimal) -> tuple[Array, Array]:
    """Return the powers of ten of the first and the last digit that are written; stripped."""
    size = jnp.sum(jnp.abs(x.mantissa)[..., None] >= jnp.asarray(POWERS), axis=-1)
    return jnp.maximum(size + x.exponent - 1, 0), jnp.minimum(x.exponent, 0)


def length_of(x: Decimal) -> Array:
    """Count the characters of a number."""
    first, last = places(x)
    return (x.mantissa < 0) + first + 1 + jnp.where(last < 0, 1 - last, 0)


def character(x: Decimal, at: Array) -> Array:
    """Return which character of RESULT stands at a place of a number."""
    first, _ = places(x)
    at = at - (x.mantissa < 0)
    # The power of ten of the digit there, and its number from the mantissa's end.
    place = jnp.where(at > first, first - at + 1, first - at) - x.exponent
    power = jnp.asarray(POWERS, jnp.int32)[jnp.clip(place, 0, len(POWERS) - 1)]
    digit = jnp.where((place >= 0) & (place < len(POWERS)), jnp.abs(x.mantissa) // power % 10, 0)
    point, minus = RESULT.index("."), RESULT.index("-")
    return jnp.where(at < 0, minus, jnp.where(at == first + 1, point, digit))
