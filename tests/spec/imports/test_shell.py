"""What a container's command starts."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.spec.imports.shell import UNKNOWN, Unreadable, read_command


def commands(script: str, environment: dict[str, str] | None = None) -> list[list[str]]:
    return [each.words for each in read_command(["sh", "-c"], [script], environment or {}).commands]


def test_words_without_a_shell_are_taken_as_they_are_but_for_kubernetes_variables():
    script = read_command(["run", "$HOME"], ["--a=$(A)", "$(B)", "'q'"], {"A": "1"})
    assert script.commands[0].words == ["run", "$HOME", "--a=1", UNKNOWN, "'q'"]
    assert script.used == {"A", "B"}
    assert read_command([], [], {}).commands == []


@pytest.mark.parametrize("shell", [["/bin/sh", "-c"], ["bash", "-lc"], ["/bin/bash", "-e", "-c"]])
def test_shells_are_seen_through(shell):
    assert read_command(shell, ["a b"], {}).commands[0].words == ["a", "b"]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("a 'b c' \"d e\" f\\ g", [["a", "b c", "d e", "f g"]]),
        ("a; b && c || d | e & f", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a \\\n  b\nc # d\n# e", [["a", "b"], ["c"]]),
        ("a > /tmp/x 2>&1 < y b", [["a", "b"]]),
        ("X=1; a $X ${X} \"${X}2\" '$X'", [["a", "1", "1", "12", "$X"]]),
        ("export X=1 Y=2\na $X$Y", [["a", "12"]]),
        ("a ${N:-d} ${X:-e} ${X:+f}", [["a", "d", "x", "f"]]),
        ('a ${N:-"$X"}', [["a", "x"]]),
        ("a $N", [["a", UNKNOWN]]),
        ("a $(b ')' $(c)) `d`", [["a", UNKNOWN, UNKNOWN]]),
        ("l=(a 'b c')\nl+=(\n d # e\n)\nrun \"${l[@]}\" end", [["run", "a", "b c", "d", "end"]]),
        ("cat <<'E' > f\nit's (\nE\na", [["cat"], ["a"]]),
        ('if [ -n "$X" ]; then a; fi', [["if", "[", "-n", "x", "]"], ["then", "a"], ["fi"]]),
        ("a '{\"b\":\"$X\"}'", [["a", '{"b":"$X"}']]),
        ("", []),
    ],
)  # fmt: skip
def test_scripts(script, found):
    assert commands(script, {"X": "x"}) == found


def test_what_is_set_in_front_of_a_command_is_its_own():
    [command] = read_command(["sh", "-c"], ["A=1 B=2 run A=3"], {}).commands
    assert (command.words, command.environment) == (["run", "A=3"], {"A": "1", "B": "2"})


@pytest.mark.parametrize("script", ["a 'b", 'a "b', "a $(b", "l=(a", "cat <<E\nnever"])
def test_what_no_shell_would_take(script):
    with pytest.raises(Unreadable):
        commands(script)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    """And in time that does not explode, for these files come from strangers."""
    try:
        found = commands(text, {"A": "1"})
    except Unreadable:
        return
    assert all(isinstance(word, str) for words in found for word in words)


PIECES = st.lists(
    st.sampled_from(
        ["a", "--b=c", "'d e'", '"f $X"', "$X", "${X}", "${Y:-z}", '"${L[@]}"', "\\\n", '"q\\"r"']
    ),
    min_size=1,
    max_size=8,
)


@given(PIECES)
def test_a_shell_reads_the_same_words(pieces):
    script = "X=x; L=(1 '2 3'); " + "printf '%s\\n' " + " ".join([*pieces, "end"])
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True)
    assert commands(script)[-1][2:] == done.stdout.splitlines()
