"""`ovseg models`: list the models, their licence and scores."""

from __future__ import annotations

import argparse
import json


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--all", action="store_true", help="also name every other tower of open_clip that works")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    from ovseg.registry import cards

    others: list[str] = []
    if options.all:
        from ovseg.loading import clip_names

        others = [name for name in clip_names() if name not in cards()]
    rows = [
        {
            "name": c.name, "license": c.license, "access": c.access, "megabytes": c.megabytes, "embed_dim": c.embed_dim,
            "scores": dict(c.scores),
        }
        for c in cards().values()
    ]  # fmt: skip
    if options.json:
        print(json.dumps(rows + [{"name": name} for name in others], indent=2))
        return 0
    column = max(len(card.name) for card in cards().values())
    licences = max(len(card.license) for card in cards().values())
    print(f"{'name':{column}}  {'licence of weights':{max(licences, 18)}}  {'size':>8}  scores")
    for card in cards().values():
        scores = ", ".join(f"{key} {value:g}" for key, value in card.scores.items())
        print(f"{card.name:{column}}  {card.license:{max(licences, 18)}}  {card.megabytes:5.0f} MB  {scores}".rstrip())
    for name in others:
        print(name)
    if not options.all:
        print("\nAlso clip-<tower>-<pretrained> for any tower of open_clip (ovseg models --all), hf-hub:OWNER/NAME, and folders.")
    return 0
