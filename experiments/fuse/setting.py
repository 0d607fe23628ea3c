"""Who is fused into whom: experts, and the settings of the eight parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.fuse.recipe import Recipe, Role

SINGLE, MULTI, UNSEEN = "single", "multi", "unseen"
SHUFFLED = "shuffled sources"
"""The candidate whose sources have their sizes and not their knowledge."""
NOISY = ("irrelevant", "random", "irrelevant and random")
ANCHORS = ("another task", "another rank", "another family")
FEWER = {"a tenth": 0.1, "a third": 1 / 3}
"""Settings with this share of the single one's replay examples, and as many steps."""


@dataclass(frozen=True)
class Member:
    """An expert: a LoRA adapter on a family's backbone that knows some tasks, or one of random numbers."""

    family: str
    tasks: tuple[str, ...]
    rank: int
    draw: int | None = None
    """Number of a random-weight expert, whose factors have the norms of the trained one; None for the trained one."""

    @property
    def name(self) -> str:
        """Of its folder, and in tables."""
        trained = f"{self.family}-r{self.rank}-{'-'.join(self.tasks)}"
        return trained if self.draw is None else f"{trained}-random{self.draw}"


@dataclass(frozen=True)
class Setting:
    """A target, its sources, and the tasks that are replayed and tested: the target's and those of sources that bring some."""

    name: str
    target: Member
    sources: tuple[Member, ...]
    noise: tuple[Member, ...] = ()
    """Sources that bring no task."""
    share: float = 1.0
    """Of each task's replay examples."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Replayed and tested."""
        return tuple(dict.fromkeys(task for member in (self.target, *self.sources) for task in member.tasks))

    @property
    def all_sources(self) -> tuple[Member, ...]:
        """The noise last."""
        return (*self.sources, *self.noise)

    @property
    def replayed(self) -> str:
        """What settings have in common whose target and replay data are the same: controls are shared by it."""
        whole = f"{self.target.name}+{'+'.join(self.tasks)}"
        return whole if self.share == 1 else f"{whole}, {self.share:.2g}"


def settings_of(recipe: Recipe) -> dict[str, Setting]:
    """Every setting by its name."""
    own = {role: member(recipe, role) for role in recipe.roles}
    target, source, other = own["target"], own["source"], own["other"]
    single = Setting(SINGLE, target, (source,))
    irrelevant = tuple(replace(target, tasks=tasks) for tasks in recipe.irrelevant)
    drawn = tuple(replace(source, draw=number) for number in range(recipe.random))
    moved = replace(other, tasks=target.tasks)
    made = [
        single,
        Setting(MULTI, target, (source, other)),
        replace(single, name=NOISY[0], noise=irrelevant),
        replace(single, name=NOISY[1], noise=drawn),
        replace(single, name=NOISY[2], noise=(*irrelevant, *drawn)),
        Setting(UNSEEN, target, (replace(other, tasks=source.tasks),)),
        replace(single, name=ANCHORS[0], target=replace(target, tasks=recipe.anchor)),
        replace(single, name=ANCHORS[1], target=replace(target, rank=recipe.anchor_rank)),
        replace(single, name=ANCHORS[2], target=moved),
        *(replace(single, name=name, share=share) for name, share in FEWER.items()),
    ]
    return {setting.name: setting for setting in made}


def member(recipe: Recipe, role: Role) -> Member:
    """The expert of a role."""
    family = recipe.roles[role]
    return Member(family, recipe.tasks[role], recipe.families[family].rank)


def relatives(setting: Setting) -> dict[str, Member]:
    """Name -> the expert on the target's own backbone that knows what a source knows: whom in-family merges merge with the target."""
    known = {"+".join(source.tasks): replace(setting.target, tasks=source.tasks) for source in setting.sources}
    noise = {"+".join(own.tasks): own for own in setting.noise if own.draw is None and own.family == setting.target.family}
    return known | noise


def ablations() -> dict[str, Mapping[str, Any]]:
    """Candidate -> what it changes in the fusion's settings: each piece taken away, and other maps of layers."""
    return {
        "random pairing": {"pairing": "random"},
        "no gate": {"gate": False},
        "no regulariser": {"regulariser": 0.0},
        "A free": {"free_down": True},
        SHUFFLED: {"shuffled": True},
        "change within B": {"bound": 1.0},
        "layers proportional": {"layers": "proportional"},
        "layers by CKA": {"layers": "cka"},
    }


def sensitivity(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """Candidate -> other starts of alpha, other mu_gate."""
    found: dict[str, Mapping[str, Any]] = {}
    found |= {f"alpha {value:g}": {"alpha": value} for value in recipe.alphas if value != recipe.fusion.alpha}
    found |= {f"mu_gate {value:g}": {"mu_gate": value} for value in recipe.gates if value != recipe.fusion.mu_gate}
    return found
