"""Which answers `math` calls equal to a gold answer and which not, and in which notation each rule keeps a gold."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from pmd.foreign_sets.golds import normalise_gold, same_gold
from pmd.problems.comparison import quick_math
from pmd.problems.numbers import read_number
from pmd.problems.verifier import equivalent, verify

RIGHT = [
    ("0", "-0"),
    ("118000", r"118\,000"),
    ("118000", r"118\;000"),
    ("118000", "118 000"),
    ("118000", "118,000"),
    ("3000000", "3e6"),
    ("1500", "1.5e3"),
    ("5/4", "1 1/4"),
    ("1.25", r"1\frac14"),
    ("0.28", r"28\%"),
    (r"28\%", "28"),
    ("18", "18 dollars"),
    ("18", "€18"),
    ("18", r"\$18"),
    (r"\sqrt{2}", "√2"),
    (r"(-\infty,3]", "(-∞,3]"),
    ("18", r"\boxed {18}"),
    ("A", "A."),
    ("A", r"\text{(A) } 12"),
    ("66.450", "66.45"),
    (r"\frac{1}{2^{99}}", "2^{-99}"),
    ("110000", "1.1×10^5"),
    ("110000", r"1.1 \times 10^{5}"),
    ("4000000", r"4 \text{ million}"),
    (r"3+2\mathrm{i}", "3+2i"),
    (r"2\mathrm{e}", "2e"),
    ("20 $cm^{2}$", "20"),
    ("9 (apples)", "9"),
    ("5", "x=5"),
    (r"x \in [-2,7]", r"-2 \le x \le 7"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("26000", "1000(26)"),
    (r"15\mbox{ cm}^2", "15"),
    (r"336^\circ", "336"),
    ("-1, 15/8", "p=-1, p=15/8"),
    (r"\frac13", "0.333333"),
    ("x^2+2x+1", "(x+1)^2"),
    ("1,22", "1.22"),
    ("4,5", "4 or 5"),
    (r"4\pi", "4 pi"),
    ("4π", r"4\pi"),
    ("12", "12m"),
    ("12.5", "12.5cm"),
    ("12", "12 cm"),
    ("4 hours 20 minutes", r"4 \text{ hours } 20 \text{ minutes}"),
    ("3/4", "0.75"),
    ("-5", "−5"),
    ("0.5", ".5"),
    ("6", r"2 \cdot 3"),
    (r"\text{Even}", "even"),
    ("2^{10}", "1024"),
    ("10^6", "1000000"),
    ("7:32", "7:32"),
    (r"-\frac{\pi}{6}", r"-\pi/6"),
    ("6+9i", "9i+6"),
    ("15x - 80", "15x-80"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{\\sqrt{3}}{3}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("1", r"100\%"),
    (r"50\%", "0.5"),
    ("2, -2", r"\pm 2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"11\sqrt2", "11√2"),
    ("y = 2x+3", "2x+3"),
    ("2x+3", "y=2x+3"),
    ("90", "90 degrees"),
    ("90", "90°"),
    (r"\text{June 20}", "June 20"),
    ("4", "4."),
    ("4", "4,"),
    ("4", "4 m^2"),
    ("100", "1 hundred"),
    ("3 m", "3"),
    ("$3$ or $4$", "3,4"),
    ("2.5 million", "2500000"),
    (r"$\frac{3}{4}$ cups", "0.75"),
    ("5", "5%"),
    ("0.05", "5%"),
    ("1234.5", "1 234.5"),
    ("1234.5", "1,234.5"),
    ("1,234.5", "1234.5"),
    ("14", "14 in"),
    (r"\dfrac{7}{3}", "2 1/3"),
    ("-7/3", "-2 1/3"),
    ("18", "18 USD"),
    ("18", "USD 18"),
    ("18", "Rs. 18"),
    ("C", "(C)"),
    (r"\text{C}", "C"),
    (r"\text{(C)}", r"\textbf{(C)}\ 12"),
    ("0.1", "0.1000001"),
    ("3", r"3^{\text{rd}}"),
    ("3", "3rd"),
    (r"\infty", "infinity"),
    ("i", r"\mathrm{i}"),
    (r"\text{no solution}", "No solution"),
    ("4", r"\approx 4"),
    ("4", r"4\%"),
    (r"4\sqrt2", "4 sqrt 2"),
    (r"4\sqrt2", "4*sqrt(2)"),
    ("3+4i", "3+4 i"),
    # characters
    ("x^{10}", "x¹⁰"),
    ("1.6e-19", "1.6×10⁻¹⁹"),
    ("5/8", "⅝"),
    ("18", "１８"),
    ("18", "₽18"),
    ("45", "45º"),
    ("3:4", "3：4"),
    ("1011_2", "1011₂"),
    # units and currencies
    ("18", "18 min"),
    ("18", "18min"),
    ("18", r"18 \mathrm{~km} / \mathrm{h}"),
    ("18", "18 kg·m/s"),
    ("18", "18m^2"),
    ("18", "18人"),
    ("18", "18 a day"),
    ("10", "$10/hour"),
    ("18", "A$18"),
    ("18", "CHF 18"),
    # numbers in words and signs
    ("-18", "minus 18"),
    ("3000000", "3 x 10^6"),
    (r"\frac{1}{2^{99}}", "2^-99"),
    ("1/3", r"0.\overline{3}"),
    (r"0.1\overline{6}", "1/6"),
    ("1234567", r"1{\,}234{\,}567"),
    ("1234567", "1'234'567"),
    ("34", "The answer is 34"),
    ("34", r"\boldsymbol{34}"),
    ("34", r"\color{blue}{34}"),
    ("**18**", "18"),
    ("3/4", r"\nicefrac{3}{4}"),
    # functions, constants and names
    (r"\ln 2", "ln(2)"),
    (r"\log_2 3", r"\log_2(3)"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    ("e^2", "exp(2)"),
    (r"2\sin x", "2 sin(x)"),
    ("3+2i", r"3+2\cdot i"),
    ("-i", r"\frac{1}{i}"),
    (r"\infty", "Infinity"),
    (r"\emptyset", r"\varnothing"),
    (r"\emptyset", "the empty set"),
    # relations and sets
    ("2x-y+3=0", "2x-y=-3"),
    ("x^2+y^2=1", "x^2+y^2-1=0"),
    (r"(-\infty,3]", r"\{x \mid x \le 3\}"),
    (r"(-1,2)\cup(3,\infty)", r"-1<x<2 \text{ or } x>3"),
    (r"(-1,2)\cup(3,\infty)", "(-1,2) U (3,∞)"),
    (r"\{1,2,3\}", r"\lbrace 1,2,3 \rbrace"),
    ("[1,2,3]", "1,2,3"),  # a list; of two numbers it might be an interval
    # ratios, times, bases
    ("3:4", "3 to 4"),
    ("2:3:5", r"2 \colon 3 \colon 5"),
    ("1 hour 30 minutes", "1 hour and 30 minutes"),
    ("1011_2", "1011 base 2"),
    # choices and texts
    ("A", "Option A"),
    ("12", "(C) 12"),
    ("Yes", "YES"),
    ("no solution", "No solutions"),
    (r"\text{Tuesday}", '"Tuesday"'),
    ("204", "Answer: 204"),
    ("204", r"204\\"),
    (r"\sqrt[3]{2}", r"\sqrt[3]2"),
    (r"\mathbb{R}", r"\mathbb R"),
    ("[-2,2]", r"\{x\in\mathbb{R} : -2\le x\le2\}"),
]
WRONG = [
    ("A", r"\text{(B) } 12"),
    ("1.6e-19", "9.1e-31"),
    ("1/2^99", "1/2^98"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    ("4", r"4\sqrt(2)"),
    ("4", r"4, \ldots"),
    ("4", "4+"),
    ("4", r"4 \text{ million}"),
    ("4", r"4 \text{ hours } 20 \text{ minutes}"),
    ("4", r"\neq 4"),
    (r"3+2\mathrm{i}", "5"),
    (r"2\mathrm{e}", "2"),
    ("20 $cm^{2}$", "cm^2"),
    ("2x+z=1", "1"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    ("7", "3 4"),
    (r"\frac{1}{3}", "0.33"),
    ("4", "4 or 5"),
    ("1,2,3", "1,2,3,4"),
    ("1,2,3,4", "1,2,3"),
    ("4", "at least 4"),
    ("4", "4 or more"),
    ("4", "4 dozen"),
    ("4", "4 pi"),
    ("3", "3x"),
    ("12", "12.5cm"),
    ("5", "5!"),
    ("12:00", "1:00"),
    ("f'", "f"),
    (r"\pm 2021", "2021"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("x=1,y=2", "x=2,y=1"),
    ("June 20", "20"),
    ("20", "June 20"),
    ("4", "-4"),
    ("4", "4^2"),
    ("4", "4/2"),
    ("4", "4x+1"),
    ("2m", "2"),
    ("2n", "2"),
    ("x>5", "5"),
    ("5", "x>5"),
    ("5", r"x \ge 5"),
    (r"5 \text{ apples and } 3 \text{ pears}", "5"),
    ("5", "5 apples and 3 pears"),
    ("(1,234)", "1234"),
    ("100,200", "100, 200"),
    ("C", "D"),
    ("0", "0.0000001"),
    ("1e-7", "0"),
    ("5", "5.001"),
    ("1", "1/2"),
    ("5", r"5 \text{ or } 6"),
    ("4", r"4 \text{ thousand}"),
    ("4", r"4\cdots"),
    ("4", "4..."),
    ("4", r"4, 5, \dots"),
    ("4", "4-"),
    ("4", r"4 \times"),
    ("4", "4="),
    ("4", "4^{"),
    ("4", "<4"),
    ("4", "> 4"),
    ("4", r"4 \text{ feet } 6 \text{ inches}"),
    ("4", "4'6\""),
    ("4", "4i"),
    ("4", r"4\mathrm{i}"),
    ("4", r"4\text{i}"),
    ("4", r"4\log 2"),
    ("4", r"4 \log(2)"),
    ("4", "4 sqrt 2"),
    ("-5/4", r"-1+\frac14"),
    ("[0,1]", "0,1"),
    ("(0,1)", r"\{0,1\}"),
    ("(0,1)", "{1,0}"),
    ("(1,2)", r"\{1,2\}"),
    ("2e", "2e1"),
    ("2:3:5", "2:5:3"),
    ("2:3:5", "2:3"),
    ("12", "1 2"),
    ("12", "12 etc"),
    ("12", r"\not= 12"),
    ("12", "12 gross"),
    ("18", "18 dozens"),
    ("18", "18万"),
    ("18", "18 to 20"),
    ("x^2+y^2=1", "x^2+y^2=2"),
    ("3+2i", "3-2i"),
    (r"(-1,2)\cup(3,\infty)", r"-1<x<2 \text{ or } x \ge 3"),
    (r"(-1,2)\cup(3,\infty)", "-1<x<2"),
    ("A", "Option B"),
    ("(A) 12", "(B) 12"),
    ("1/3", r"0.\overline{4}"),
    ("4 hours 20 minutes", "4 hours 2 minutes"),
    ("20", "4 hours 20 minutes"),
    ("1.6e-19,2", "9.1e-31,2"),
]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers(gold, answer):
    assert equivalent("math", [(gold, answer)]) == [True]
    assert equivalent("math", [(normalise_gold(gold), answer)]) == [True]


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong_answers(gold, answer):
    assert equivalent("math", [(gold, answer)]) == [False]


def test_powers_of_ten_are_read_exactly():
    rng = random.Random(0)
    pairs = []
    for _ in range(500):
        digits, power = rng.randrange(11, 99), rng.randrange(1, 18)
        gold = digits * 10 ** (power - 1)
        pairs.append((str(gold), rf"{digits / 10} \times 10^{{{power}}}"))
        pairs.append((str(gold + 1), f"{digits / 10}e{power}"))
    assert equivalent("math", pairs) == [True, False] * 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,5", None),
        ("2.50", "5/2"),
        ("-1 1/4", "-5/4"),
        ("1 5/4", None),
        ("1/0", None),
        ("28\\%", "28"),
        ("2e-3", "1/500"),
    ],
)
def test_numbers_are_read_exactly(text, value):
    found = read_number(text)
    assert (found and found.value) == (value and Fraction(value))


@pytest.mark.parametrize(
    ("rule", "gold", "response", "right"),
    [
        ("exact", "01234", "01234", True),
        ("exact", "01234", "1234", False),
        ("exact", "$5$", "$5$", True),
        ("exact", "1,000", "1000", False),
        ("dapo", "025", "Answer: 025", True),
        ("dapo", "025", "Answer: 25", True),
        ("dapo", "25", "Answer: 025", False),
        ("dapo", "66.450", "Answer: 66.450", True),
        ("dapo", "66.450", "Answer: 66.45", True),
        ("dapo", "1e3", "Answer: 1e3", True),
        ("dapo", "0.5", "Answer: 1/2", False),
        ("math", "3e6", r"\boxed{3e6}", True),
        ("math", "66.450", r"\boxed{66.450}", True),
        ("math", "066", r"\boxed{66}", True),
    ],
)
def test_a_gold_is_normalised_for_its_rule(rule, gold, response, right):
    [verdict] = verify([rule], [response], [normalise_gold(gold, rule)], [True])
    assert verdict.correct == right


def test_golds_conflict_by_value_unless_they_are_codes():
    assert same_gold("01", "1", "dapo")
    assert not same_gold("01", "1", "exact")
    assert not same_gold("x", "y", "dapo")


@pytest.mark.timing
@pytest.mark.parametrize("text", ["1" + " " * 1990 + "x", " " * 2000 + "x", "(1," * 600, r"\text{" * 300, "1 " * 1000])
def test_the_normal_form_of_a_hostile_answer_is_soon_made(text):
    start = time.process_time()
    quick_math("x+1", text)
    assert time.process_time() - start < 1.0
