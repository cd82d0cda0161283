"""How wide an adapter may be: checked before any work is done for it."""

from scumble.errors import UserError


def check_rank(rank: int | None, energy: float | None = None) -> None:
    """Refuse what no layer can have.

    Args:
        rank: of each layer, at most; None where it follows from something else.
        energy: share of each layer's change to keep; None keeps what the rank can hold.

    Raises:
        UserError: the rank is below 1, or the share is not above 0 and up to 1.
    """
    if rank is not None and rank < 1:
        raise UserError(f"the rank is {rank}", "Give a rank of at least 1.")
    if energy is not None and not 0 < energy <= 1:
        hint = "Give a share above 0 and up to 1, as in 0.99."
        raise UserError(f"the energy to keep is {energy:g}", hint)
