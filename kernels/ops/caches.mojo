"""What ops require of keys and values: the layouts of the attention folder, as shapes."""

from extensibility import InputTensor
from std.math import ceildiv
from std.utils import IndexList

from ..attention.bytes import KEY_PANEL, VALUE_GROUP, VALUES
from ..attention.integers import VALUE_GROUP as INTEGER_GROUP
from ..attention.integers import WORDS
from ..attention.pairs import KEY_GROUP
from ..attention.strip import HEAD
from ..cpu.split_amx import TERMS
from ..cpu.tile import PANEL
from ..data import require_size


def require_room[
    op: StaticString
](past: InputTensor[dtype=DType.int32, rank=1, ...], batch: Int, length: Int, capacity: Int) raises:
    """Raises unless the rows of a KV cache have room for what is to come, on a CPU, where the host can look.

    Parameters:
        op: The op that asks.

    Args:
        past: The keys each row holds.
        batch: B.
        length: Keys that are to come.
        capacity: Keys that a row takes.
    """
    for b in range(batch):
        if not 0 <= Int(past[b]) <= capacity - length:
            raise Error(
                op,
                ": row ",
                b,
                " holds ",
                past[b],
                " keys and ",
                length,
                " more are to come, the cache takes ",
                capacity,
            )


def require_keys_and_values[
    keys_rank: Int, values_rank: Int, //, target: StaticString, op: StaticString
](keys: IndexList[keys_rank, ...], values: IndexList[values_rank, ...], batch: Int) raises:
    """Raises unless keys and values have the device's layout and B batch rows.

    Parameters:
        keys_rank: 5 on a CPU, 4 on a GPU.
        values_rank: 4.
        target: The device.
        op: The op that asks.

    Args:
        keys: Shape of the keys.
        values: Shape of the values.
        batch: B.
    """
    comptime assert values_rank == 4, "values are (B, H, S, 64)"
    require_size(values[0], batch, op, "B of the values")
    require_size(values[3], HEAD, op, "the size of a head")
    require_size(keys[0], batch, op, "B of the keys")
    require_size(keys[1], values[1], op, "H of the keys")
    comptime if target == "cpu":
        comptime assert keys_rank == 5, "on a CPU, keys are (B, H, ceil(S/16), 64, 16)"
        require_size(keys[2], ceildiv(values[2], PANEL), op, "the number of panels of keys")
        require_size(keys[3], HEAD, op, "the size of a head of the keys")
        require_size(keys[4], PANEL, op, "the width of a panel of keys")
    else:
        comptime assert keys_rank == 4, "on a GPU, keys are (B, H, S, 64)"
        require_size(keys[2], values[2], op, "the number of keys")
        require_size(keys[3], HEAD, op, "the size of a head of the keys")


def require_audio[
    keys_rank: Int, values_rank: Int, //, dtype: DType, target: StaticString, op: StaticString
](keys: IndexList[keys_rank, ...], values: IndexList[values_rank, ...], batch: Int, key_count: Int) raises -> Int:
    """Raises unless keys and values that no step adds to have the device's layout, that of bytes or that of other numbers.

    Parameters:
        keys_rank: 5 on a CPU, 4 on a GPU.
        values_rank: 5 of bytes, else 4.
        dtype: Of keys and values.
        target: The device.
        op: The op that asks.

    Args:
        keys: Shape of the keys.
        values: Shape of the values.
        batch: B.
        key_count: S of bytes.

    Returns:
        S.
    """
    comptime assert (dtype == DType.int8) == (values_rank == 5), "keys and values of bytes have rank 5, and no others"
    comptime if values_rank == 4:
        require_keys_and_values[target, op](keys, values, batch)
        return values[2]
    else:
        comptime assert target == "cpu", "on a GPU, keys and values are (B, H, S, 64)"
        require_bytes[op](keys, values, batch, key_count)
        return key_count


def require_bytes[
    keys_rank: Int, values_rank: Int, //, op: StaticString
](keys: IndexList[keys_rank, ...], values: IndexList[values_rank, ...], batch: Int, length: Int) raises:
    """Raises unless keys and values have a CPU's layout of bytes, B batch rows and S rows.

    Parameters:
        keys_rank: 5.
        values_rank: 5.
        op: The op that asks.

    Args:
        keys: Shape of the keys.
        values: Shape of the values.
        batch: B.
        length: S.
    """
    comptime assert keys_rank == 5 and values_rank == 5, "keys and values of bytes have rank 5"
    require_size(values[0], batch, op, "B of the values")
    require_size(values[2], ceildiv(length, VALUE_GROUP), op, "the groups of values")
    require_size(values[3], VALUES // VALUE_GROUP, op, "the rows of a group of values")
    require_size(values[4], VALUE_GROUP, op, "the width of a group of values")
    require_size(keys[0], batch, op, "B of the keys")
    require_size(keys[1], values[1], op, "H of the keys")
    require_size(keys[2], ceildiv(length, PANEL), op, "the number of panels of keys")
    require_size(keys[3], KEY_PANEL // (4 * PANEL), op, "the rows of a panel of keys")
    require_size(keys[4], 4 * PANEL, op, "the width of a panel of keys")


def require_integers[
    keys_rank: Int, values_rank: Int, //, op: StaticString
](keys: IndexList[keys_rank, ...], values: IndexList[values_rank, ...], batch: Int, length: Int) raises:
    """Raises unless keys and values have a CPU's layout of int16, B batch rows and S rows.

    Parameters:
        keys_rank: 5.
        values_rank: 5.
        op: The op that asks.

    Args:
        keys: Shape of the keys.
        values: Shape of the values.
        batch: B.
        length: S.
    """
    comptime assert keys_rank == 5 and values_rank == 5, "keys and values of int16 have rank 5"
    require_size(values[0], batch, op, "B of the values")
    require_size(values[2], HEAD // PANEL * ceildiv(length, INTEGER_GROUP), op, "the number of panels of values")
    require_size(values[3], 1 + WORDS, op, "the rows of a panel of values")
    require_size(values[4], 2 * PANEL, op, "the width of a panel of values")
    require_size(keys[0], batch, op, "B of the keys")
    require_size(keys[1], values[1], op, "H of the keys")
    require_size(keys[2], ceildiv(length, PANEL), op, "the number of panels of keys")
    require_size(keys[3], 1 + WORDS, op, "the rows of a panel of keys")
    require_size(keys[4], 2 * PANEL, op, "the width of a panel of keys")


def require_pairs[
    keys_rank: Int, values_rank: Int, //, op: StaticString
](keys: IndexList[keys_rank, ...], values: IndexList[values_rank, ...], batch: Int, length: Int) raises -> Int:
    """Raises unless keys and values have a CPU's layout of pairs of bfloat16, B batch rows and S rows.

    Parameters:
        keys_rank: 5.
        values_rank: 5.
        op: The op that asks.

    Args:
        keys: Shape of the keys.
        values: Shape of the values.
        batch: B.
        length: S.

    Returns:
        How many terms stand for a number: 1 or 2.
    """
    comptime assert keys_rank == 5 and values_rank == 5, "on a CPU, keys and values of bfloat16 have rank 5"
    var terms = TERMS if keys[3] == TERMS * HEAD // 2 else 1
    require_size(values[0], batch, op, "B of the values")
    require_size(values[2], HEAD // PANEL, op, "the panels of a head of the values")
    require_size(values[3], terms * PANEL * ceildiv(length, KEY_GROUP), op, "the number of pairs of values")
    require_size(values[4], 2 * PANEL, op, "the width of a panel of values")
    require_size(keys[0], batch, op, "B of the keys")
    require_size(keys[1], values[1], op, "H of the keys")
    require_size(keys[2], ceildiv(length, PANEL), op, "the number of panels of keys")
    require_size(keys[3], terms * HEAD // 2, op, "the pairs of a head of the keys")
    require_size(keys[4], 2 * PANEL, op, "the width of a panel of keys")
    return terms
