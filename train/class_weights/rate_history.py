"""What a row has missed: the effect of the steps that did not score it, in a time that does not grow with their number.

Why: SGD, momentum and Adagrad move EVERY row in every step, by decay and by old momentum. Doing so costs as much as a
dense update; leaving it out is another method. Here a row is brought up to date when it is next read, from the learning
rates alone. With decoupled decay d, momentum mu and learning rates lr_t, a row of weight w and momentum b that was last
moved in step t and then missed steps t+1 .. n is

    for s in t+1 .. n:  b = mu * b;  w = (1 - lr_s * d) * w - lr_s * b

    = A(t, n) * (w - pull[t] * b),  mu ** (n - t) * b
    A(t, n) = prod_{s = t+1 .. n} (1 - lr_s d)            pull[t] = sum_{s = t+1 .. n} lr_s mu ** (s - t) / A(t, s)

in fp64. Each step adds one term to `pull` of the ages whose mu ** age still counts, and one entry to the running sum of
log(1 - lr d). Ours; the loop above is the twin of the tests. Momentum is that of torch.optim.SGD without dampening.


Letters: S rows.
"""

import math

import torch
from torch import Tensor

# mu ** age below this adds nothing to a sum in double precision.
NEGLIGIBLE = 1e-20


class RateHistory:
    """The learning rates so far, as running sums; 16 bytes a step.

    Args:
        momentum: mu, from 0 to below 1. weight_decay: decoupled, at least 0.
    """

    def __init__(self, *, momentum: float, weight_decay: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be from 0 to below 1, such as 0.9")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0, such as 0.02")
        self.momentum, self.weight_decay = momentum, weight_decay
        self.steps = 0
        self._log_decay = torch.zeros(1, dtype=torch.float64)
        self._pull = torch.zeros(1, dtype=torch.float64)
        longest = 0 if momentum == 0 else math.ceil(math.log(NEGLIGIBLE) / math.log(momentum))
        self._powers = torch.tensor(momentum, dtype=torch.float64) ** torch.arange(1, longest + 1)

    def check_rate(self, learning_rate: float) -> None:
        """Refuse what cannot be a step.

        Raises:
            ValueError: a learning rate that is negative or not finite, or so high that decay turns weights around.
        """
        if not 0 <= learning_rate < math.inf:
            raise ValueError(f"the learning rate of class weights is {learning_rate}; it must be finite, at least 0")
        if learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning rate {learning_rate} times weight decay {self.weight_decay} is at least 1, which leaves "
                "nothing of a weight; lower one of them"
            )

    def add(self, learning_rate: float) -> None:
        """Record the learning rate of the step that has just been taken; see `check_rate`."""
        self.check_rate(learning_rate)
        now = self.steps + 1
        if now == len(self._log_decay):
            longer = torch.zeros(max(64, len(self._log_decay)), dtype=torch.float64)
            self._log_decay, self._pull = (torch.cat([old, longer]) for old in (self._log_decay, self._pull))
        self._log_decay[now] = self._log_decay[now - 1] + math.log1p(-learning_rate * self.weight_decay)
        self._pull[now] = 0.0
        first = max(0, now - len(self._powers))
        if first < now:
            lost = (self._log_decay[first:now] - self._log_decay[now]).exp()
            self._pull[first:now] += learning_rate * self._powers[: now - first].flip(0) * lost
        self.steps = now

    def decay(self, last_S: Tensor) -> Tensor:
        """(S,) float64 A(t, now) of rows last moved in step t (0 = never)."""
        return (self._log_decay[self.steps] - self._log_decay[last_S.cpu()]).exp().to(last_S.device)

    def pull(self, last_S: Tensor) -> Tensor:
        """(S,) float64 pull[t]."""
        return self._pull[last_S.cpu()].to(last_S.device)

    def momentum_left(self, last_S: Tensor) -> Tensor:
        """(S,) float64 mu ** (now - t)."""
        base = torch.tensor(self.momentum, dtype=torch.float64, device=last_S.device)
        return base ** (self.steps - last_S)

    def state(self) -> dict[str, Tensor]:
        """The sums, (steps + 1,) each; equal on every rank."""
        end = self.steps + 1
        return {"log_decay": self._log_decay[:end].clone(), "pull": self._pull[:end].clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, of any number of steps."""
        self._log_decay, self._pull = state["log_decay"].clone(), state["pull"].clone()
        self.steps = len(self._log_decay) - 1
