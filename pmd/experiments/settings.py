"""Namespaces `law` and `finite` of params.yaml. Importing this loads no torch, so that they are checked at once."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from pmd import params

Positive = Annotated[float, Field(gt=0)]


class Law(params.Settings):
    """Namespace `law` of params.yaml: a cell for every base × seed × tau × normalise."""

    bases: list[int] = Field(min_length=1)  # base models, by number
    seeds: list[int] = Field(min_length=1)  # of the choice of prompts and of sampling
    tau: list[Positive] = Field(min_length=1)  # [τ]
    normalise: list[Literal["length", "constant"]] = Field(min_length=1)  # how the regression weighs responses
    prompts: int = Field(ge=1)
    rollouts: int = Field(ge=2)  # [n] of each prompt, in the batch that the update learns from
    held_out: int = Field(ge=1)  # other rollouts of each prompt, which are only measured
    max_tokens: int = Field(ge=1)  # the longest response
    lr: float = Field(gt=0)  # Adam's first rate, which falls to 0
    steps: int = Field(ge=1)  # inner steps, each on the whole batch
    measure: list[int]  # after which of them s is measured; the last is measured too
    device: params.Device  # cpu, cuda, cuda:1, …
    threads: int = Field(ge=1)  # CPU threads of a cell; cells run side by side


class Finite(params.Settings):
    """Namespace `finite` of params.yaml: a cell for every base × seed × n × tau × tau_b."""

    bases: list[int] = Field(min_length=1)  # base models, by number
    seeds: list[int] = Field(min_length=1)  # of the choice of prompts and of sampling
    n: list[Annotated[int, Field(ge=2)]] = Field(min_length=1, max_length=4)  # rollouts of a prompt in an update
    tau: list[Positive] = Field(min_length=1)  # [τ]
    tau_b: list[float | Literal["tau", "inf"]] = Field(min_length=1)  # "tau": τ itself; "inf": the mean; < 0: below it
    prompts: int = Field(ge=1)  # that the update learns from
    others: int = Field(ge=1)  # prompts that it does not see
    same_k: int = Field(ge=1)  # fresh responses to each of the former, before and after
    other_k: int = Field(ge=1)  # and to each of the latter
    normalise: Literal["length", "constant"]  # how the regression weighs responses
    max_tokens: int = Field(ge=1)  # the longest response
    lr: float = Field(gt=0)  # Adam's first rate, which falls to 0
    steps: int = Field(ge=1)  # inner steps, each on the whole batch
    device: params.Device  # cpu, cuda, cuda:1, …
    threads: int = Field(ge=1)  # CPU threads of a cell; cells run side by side


def temperature(tau_b: float | str, tau: float) -> float:
    """The number that an entry of `finite.tau_b` stands for; ValueError in one line for 0."""
    params.require(tau_b != 0, "finite.tau_b", tau_b, "a number other than 0, tau or inf")
    return {"tau": tau, "inf": math.inf}[tau_b] if isinstance(tau_b, str) else float(tau_b)
