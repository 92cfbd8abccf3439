"""Every answer to a countdown problem."""

from jaxtrain.tasks.countdown import legal_moves, write_move


def solutions(numbers: tuple[int, ...], target: int) -> list[str]:
    """Return every correct response to a problem, in a fixed order."""
    lines = []
    for move in legal_moves(numbers):
        if len(move.remaining) > 1:
            lines += [f"{write_move(move)}\n{rest}" for rest in solutions(move.remaining, target)]
        elif move.result == target:
            lines.append(write_move(move))
    return lines
