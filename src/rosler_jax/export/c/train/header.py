"""The header of C that trains."""

from __future__ import annotations

from rosler_jax.export.c.files import ABOUT_CONST, Port, Ports, arena_type, header_file
from rosler_jax.export.c.train.program import Program, declaration
from rosler_jax.export.c.unit import CTYPE

HEADER, SOURCE = "rosler_train.h", "rosler_train.c"
_NAN = """ NaN among the inputs makes the loss NaN, and then the weights: look at the
   loss before rosler_train_save; rosler_train_load takes the weights back."""
_SWITCH = """
/* Ends the parallel stage: the cores are solved for and stay, the factors are given the
   same norm; from now on all of them train through one another. */
void rosler_train_switch(rosler_state *state, rosler_train_arena *arena);
"""
_PREDICT = """
/* The outputs with the weights as they are. */
void rosler_train_predict(const rosler_state *state, rosler_train_arena *arena,
    const rosler_train_input *x, rosler_train_output *y);
"""
_STORAGE = """
/* Where weights are kept: two slots of ROSLER_SLOT_BYTES each, from offset 0. Callbacks return 0
   if all went well. Flash: make a slot a whole number of blocks, and erase those of a slot when its
   first byte after the header (offset ROSLER_SLOT_HEADER_BYTES in the slot) is written. */
#define ROSLER_SLOT_HEADER_BYTES 24u
#ifndef ROSLER_SLOT_BYTES
#define ROSLER_SLOT_BYTES (ROSLER_SLOT_HEADER_BYTES + ROSLER_TRAIN_WEIGHT_BYTES)
#endif

typedef struct {
    int (*write)(void *context, uint32_t offset, const void *data, uint32_t size);
    int (*read)(void *context, uint32_t offset, void *data, uint32_t size);
    void *context;
} rosler_storage;

/* Writes the weights to the slot that does not hold the newest ones, and reads them again. Returns
   the slot, 0 or 1; -1 if it failed: what was saved before is still there. Power may fail at any
   byte. */
int rosler_train_save(const rosler_state *state, const rosler_storage *storage);

/* Reads the newest weights that are whole; *sequence (if not 0) counts how often they were saved.
   Returns the slot; -1 if there are none: the weights are then those of rosler_train_begin. The
   velocity starts from zero. */
int rosler_train_load(rosler_state *state, const rosler_storage *storage, uint32_t *sequence);
"""


def header(program: Program, arena: int, model: int) -> str:
    """The text of ``rosler_train.h``.

    Args:
      program: that it belongs to.
      arena: bytes of working memory.
      model: a number that says which network saved weights belong to.
    """
    style = program.style
    x, y = (
        Port("", dtype, size, scale)
        for dtype, size, scale in zip(style.types, program.sizes, style.scales, strict=True)
    )
    ports = Ports("rosler_train_", [x], [y])
    return header_file(HEADER, [
        f"{ports.macros()}\n#define ROSLER_TRAIN_BATCH {program.training.batch}", ports.scales(),
        _sizes(program, arena, model), ABOUT_CONST, f"{ports.types()}\n{_types(program)}",
        _state(program), arena_type("rosler_train_"), _step(program), _PREDICT,
        ports.quantizers(), _SWITCH if program.training.stage == "parallel" else "", _STORAGE,
    ])  # fmt: skip


def _sizes(program: Program, arena: int, model: int) -> str:
    count = program.parameters.count
    return f"""\
/* How many numbers train, the bytes that are saved of them, and bytes of working memory. */
#define ROSLER_TRAIN_WEIGHTS {count}
#define ROSLER_TRAIN_VELOCITY {count if program.has_velocity else 0}
#define ROSLER_TRAIN_WEIGHT_BYTES {4 * count}u
#define ROSLER_TRAIN_ARENA_BYTES {arena}

/* Says which network saved weights belong to. */
#define ROSLER_TRAIN_MODEL 0x{model:08X}u"""


def _types(program: Program) -> str:
    style, labels = program.style, program.training.loss == "cross_entropy"
    return (
        f"typedef {'int' if labels else CTYPE[style.types[1]]} rosler_train_target;\n"
        f"typedef {style.rate} rosler_train_rate;\ntypedef {style.loss} rosler_train_loss;"
    )


def _state(program: Program) -> str:
    number = program.style.number
    velocity = f"\n    {number} velocity[ROSLER_TRAIN_WEIGHTS];" if program.has_velocity else ""
    return f"""\
/* What trains; kept between calls. Weights that are received (from a server of many devices, say)
   are copied over `weights` after rosler_train_begin, and sent from there. */
typedef struct {{
    {number} weights[ROSLER_TRAIN_WEIGHTS];{velocity}
}} rosler_state;"""


def _step(program: Program) -> str:
    style, labels = program.style, program.training.loss == "cross_entropy"
    label = "a label for each example" if labels else "ROSLER_TRAIN_OUTPUT_SIZE for each"
    nan = _NAN if style.types[1] == "float32" else ""
    return f"""\
/* The weights as they were exported. */
void rosler_train_begin(rosler_state *state);

/* One step on `count` examples, at most ROSLER_TRAIN_BATCH: x one behind the other, and
   {label}. Returns {style.about_loss}; -1, and nothing has changed, for a count or a label
   that cannot be.{nan} */
{declaration(program)};"""
