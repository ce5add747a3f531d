"""In how many threads MLX's BLAS computes, decided again at every checkpoint and kept in run.json.

So a training that began beside other work computes in all threads once that has ended, and one that goes on from a
checkpoint computes as it did before: another number of threads rounds some products differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from pilocal.flow.context import Context


@dataclass(frozen=True, slots=True)
class Threads:
    """The threads of the training that the step `name` is, by the step from which on they hold."""

    context: Context
    name: str

    def settle(self, step: int, resumed: bool) -> None:
        """Decide for the steps after `step`, or take what was decided for them where the training is `resumed` there.

        Warns when the machine is busy and the training goes on in one thread.
        """
        from pilocal.base.blas import choose_threads, load_fast_blas, set_threads

        load_fast_blas()
        kept = self._kept()
        if resumed:
            set_threads(_at(kept, step))
            return
        earlier = {begun: threads for begun, threads in kept.items() if begun < step}
        before, chosen = _at(earlier, step), choose_threads(self.context.base.config["hidden_size"])
        now = earlier if chosen == before else earlier | {step: chosen}
        if now != kept:
            run = self.context.run
            run.state["threads"] = run.state.get("threads", {}) | {self.name: now}
            run.save()  # before the next step: a run that is killed goes on so, too
        if chosen and not before:
            self.context.warn(
                "the machine is busy with other work: this training computes in one thread until that ends"
            )

    def _kept(self) -> dict[int, int | None]:
        """Return what run.json says; JSON's keys are text, and a former version kept one number for all steps."""
        found = self.context.run.state.get("threads", {}).get(self.name, {})
        return {int(begun): threads for begun, threads in found.items()} if isinstance(found, dict) else {0: found}


def _at(kept: dict[int, int | None], step: int) -> int | None:
    """Return in how many threads the steps after `step` compute; None is all of them."""
    return kept[max(begun)] if (begun := [other for other in kept if other <= step]) else None
