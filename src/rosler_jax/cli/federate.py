"""``rosler federate``: a compact network from data that stays at many clients."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from rosler_jax.cli._command import (
    PARSERS,
    Command,
    Outcome,
    UsageError,
    field_types,
    flag,
    how_to_resume,
    made,
    run_folder,
    shown,
    table,
)
from rosler_jax.cli._config_options import add_config_options, build_config, given_options
from rosler_jax.cli._progress import rounds_progress

FILES = (
    "model.rosler", "result.json", "config.json", "federated.json", "history.csv", "refused.csv",
    "curves.png",
)  # fmt: skip

MODEL_OPTIONS = (
    "data", "target", "image_size", "data_options", "manual_dir", "standardize", "validation",
    "task", "metric",
    "class_weights", "model", "hidden", "options", "method", "rank", "rules", "in_sketch", "sketch",
    "bits", "quantization_aware", "quantize_from", "batch_size", "learning_rate", "schedule",
    "weight_decay", "label_smoothing", "precision", "seed", "oversampling", "parallel_epochs",
    "parallel_learning_rate", "momentum", "clip_norm", "shift", "flip", "rotate", "zoom", "elastic",
    "noise",
)  # fmt: skip
"""Fields of the clients' own config; ``epochs`` are the rounds."""

HELP = {
    "clients": ("N", "clients there are"),
    "rounds": ("N", "of training"),
    "participation": ("F", "share of the clients that is asked in each round"),
    "local_epochs": ("N", "passes of a client over its own data in a round"),
    "split": (
        "HOW",
        "of the data among clients: iid, dirichlet:0.3, classes:2, or the name of a grouping of "
        "the data, as recording or load of bearings, groups of a .npz file",
    ),
    "client": ("NAME", "a client's optimiser, anew each round: sgd, momentum:0.9, adam"),
    "server": ("NAME", "the server's, with its rate: fedavg:1, fedavgm, fedadam:0.01, fedyogi"),
    "proximal": ("F", "pull of clients towards the server's model (FedProx)"),
    "exchange": (
        "WHAT",
        "parameters, sketches of the weights behind factors, or count-sketch:0.25",
    ),
    "upload": ("HOW", "numbers to the server: float32, bits:8, step:2, top:0.01, sign"),
    "download": ("HOW", "numbers to the clients, the same ways"),
    "delta": ("N", "numbers of a seeded delta that is trained in the place of the weights"),
    "aggregate": ("HOW", "of messages: mean, trimmed-mean:0.2, median, krum:0.2, clipped-mean:1"),
    "reject_norm": ("F", "refuse messages so many times longer than the median; 0: never"),
    "ban_after": ("N", "hear a client no more after so many broken messages; 0: never"),
    "drop": ("F", "share of the asked clients that do not answer"),
    "bad": ("F", "share of the clients that send garbage"),
    "garbage": (
        "KIND",
        "what they send: all, nan, huge, noise, flipped, stale, shape, cut, random",
    ),
    "secure": ("", "mask messages, so that the server learns their sum alone"),
    "secure_range": ("F", "largest number of a masked message"),
    "clip": ("NORM", "cut messages to this Euclidean norm; 0: never"),
    "noise": ("F", "deviation of the noise on their sum, in units of clip"),
    "wire": ("", "write every message as bytes: exact, and slower"),
    "evaluate_every": ("N", "rounds between scores on validation"),
    "seed": ("N", "of split, choice of clients, drops, garbage and sketches"),
}
"""Of every field of :class:`rosler_jax.federated.config.FederatedConfig`: metavar and help."""

OWN = {"noise": "privacy_noise", "seed": "federated_seed"}
"""Fields whose option has another name, for the clients' config has an option of theirs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, what to resume, the federation, and the clients' config."""
    from rosler_jax.federated.config import FederatedConfig

    parser.add_argument("--out", metavar="DIR", help="folder of a new run; made if there is none")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder, with its own config"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    group, types = parser.add_argument_group("federation"), field_types(FederatedConfig)
    for field in dataclasses.fields(FederatedConfig):
        metavar, text = HELP[field.name]
        default: Any = field.default
        if types[field.name] is bool:
            settings: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            default = "yes" if default else "no"
        else:
            settings = {"type": PARSERS[types[field.name]], "metavar": metavar}
        group.add_argument(
            flag(_own_name(field.name)),
            dest=f"federated_{field.name}",
            default=argparse.SUPPRESS,
            help=f"{text} (default: {default})".replace("%", "%%"),
            **settings,
        )
    _add_network(parser)
    add_config_options(parser, MODEL_OPTIONS)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network", "processes of their own, over Flower")
    add = group.add_argument
    add("--network", choices=("server", "client"), help="which side this is; none: simulate")
    add(
        "--address",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="of the server (default: %(default)s)",
    )
    add("--client-number", type=int, metavar="N", help="which of the clients this is, from 0")
    add("--state", metavar="FILE", help="what the client keeps between rounds, if it is killed")
    add("--secure-client", action="store_true", help="of a server with --secure")
    add(
        "--timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that a round waits for replies (default: %(default)s)",
    )
    add(
        "--min-replies",
        type=int,
        metavar="N",
        help="without which a round is not over (default: 1; 2 if secure)",
    )
    add(
        "--gather",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that the first round waits for clients (default: %(default)s)",
    )
    add(
        "--give-up",
        type=float,
        metavar="S",
        help="seconds without the server until the client gives up (default: never)",
    )
    add("--certificate", metavar="FILE", help="of the server, PEM")
    add("--key", metavar="FILE", help="of the certificate, PEM")
    add("--root-certificates", metavar="FILE", help="that the client trusts, PEM")
    add("--secret-file", metavar="FILE", help="with a line that clients must know")
    add("--insecure", action="store_true", help="unencrypted even to other machines")


def run(args: argparse.Namespace) -> Outcome:
    """Trains, or goes on; or plays one side of a network."""
    if args.network == "client":
        return join(args)
    given, federation = given_options(args), federated_options(args)
    folder = run_folder(args, [*given, *map(_own_name, federation)])
    config = federated = None
    if args.resume is None:
        federated = build_federated(federation)
        config = build_config({**given, "epochs": federated.rounds})

    from rosler_jax import run as runs
    from rosler_jax.federated import run as federated_runs

    resume = config is None
    known = config or runs.agreed_config(folder, None, True)
    rounds = federated or federated_runs.agreed_federated(folder, None, True)
    metric, _ = runs.metric_of(runs.task_of(known), known.metric)
    with rounds_progress(rounds.rounds, metric, args.quiet) as report:
        if args.network == "server":
            from rosler_jax.federated.network import Pace
            from rosler_jax.federated.served import serve_federated

            least = args.min_replies or (2 if rounds.secure else 1)
            result = serve_federated(
                config, federated, folder, args.address, resume=resume, report=report,
                pace=Pace(timeout=args.timeout, min_replies=least, gather=args.gather),
                started=_says_where, **_tls(args, "certificate", "key"),
            )  # fmt: skip
        else:
            result = federated_runs.federate(
                config, federated, folder, resume=resume, report=report
            )
    files = [name for name in FILES if (folder / name).exists()]
    text = f"{result_table(result)}\n\nwrote {', '.join(files)} into\n{folder}"
    return Outcome(text, {**result, "out": str(folder), "files": files})


def _says_where(address: str) -> None:
    print(f"clients can connect to {address}", file=sys.stderr, flush=True)


def _tls(args: argparse.Namespace, *files: str) -> dict[str, Any]:
    secret = None
    if args.secret_file is not None:
        secret = Path(args.secret_file).read_text(encoding="utf-8").strip()
    return {"insecure": args.insecure, "secret": secret, **{n: getattr(args, n) for n in files}}


def join(args: argparse.Namespace) -> Outcome:
    """Works for a server until it has no more rounds."""
    given = given_options(args)
    known = {"data", "target", "image_size", "data_options", "manual_dir"}
    extra = sorted([*(set(given) - known), *map(_own_name, federated_options(args))])
    if extra or args.out is not None or args.resume is not None:
        named = ", ".join([flag(name) for name in extra]) or "--out, --resume"
        raise UsageError(f"a client is told the run by its server; leave out {named}")
    if args.client_number is None:
        raise UsageError("name which client this is: --client-number N")

    from rosler_jax.federated import node
    from rosler_jax.federated.network import join as join_network
    from rosler_jax.federated.network import join_app
    from rosler_jax.run import source_options

    number = args.client_number
    examples = node.simulated_examples(number)
    if "data" in given:
        config = build_config(given)
        examples = node.own_examples(config.data, **source_options(config))
    options: dict[str, Any] = _tls(args, "root_certificates")
    options |= {"client": number, "patience": args.give_up}
    if args.secure_client:
        from rosler_jax.federated.network.secagg import sum_client_app

        secure = node.make_secure_work(number, examples)
        done = join_app(lambda: sum_client_app(secure, number), args.address, **options)
    else:
        work = node.make_work(number, examples, state=args.state)
        done = join_network(work, args.address, **options)
    return Outcome(f"client {number}: worked {done} times", {"client": number, "worked": done})


def federated_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the federation whose options were given."""
    named = ((name, f"federated_{name}") for name in HELP)
    return {name: getattr(args, place) for name, place in named if hasattr(args, place)}


def build_federated(given: dict[str, Any]) -> Any:
    """The config of the federation.

    Raises:
      UsageError: for values that no run can have.
    """
    from rosler_jax.federated.config import FederatedConfig

    return made(FederatedConfig, given)


def interrupted(args: argparse.Namespace) -> str:
    """How to resume, if there is anything to resume."""
    return how_to_resume(args, "federate")


def _own_name(name: str) -> str:
    """Of a field of the federation, that its option has."""
    return OWN.get(name, name)


def result_table(result: dict[str, Any]) -> str:
    """What a federated run has come to."""
    metric = result["metric"]
    refused = ", ".join(f"{count} {reason}" for reason, count in result["refused"].items())
    rows: list[tuple[str, object]] = [
        (f"test {metric}", shown(metric, result[f"test_{metric}"])),
        (f"validation {metric}", shown(metric, result[f"validation_{metric}"])),
        ("best round", f"{result['best_round']} of {result['rounds']}"),
        ("clients", result["clients"]),
        ("numbers in a message", result["numbers_sent"]),
        ("bytes up, all clients", round(result["up_bytes"])),
        ("bytes down", round(result["down_bytes"])),
        ("dense float32 FedAvg", round(result["dense_fedavg_bytes"])),
        ("times fewer", f"{result['times_fewer_bytes']:.1f}x in as many rounds"),
        ("messages refused", refused or "none"),
        ("file bytes", result["file_bytes"]),
        ("training", f"{result['train_seconds']:.1f} s"),
        ("device", f"{result['device']}, jax {result['jax_version']}"),
        ("seed", result["seed"]),
    ]
    if result["epsilon"] is not None:
        rows.append(("privacy of a client", f"epsilon {result['epsilon']:.2f}"))
    return table(rows)


COMMAND = Command(
    summary="train a network on data that stays at many clients, with few bytes between them",
    description=(
        "Simulates a federation: clients train on data of their own, updates travel compressed, "
        f"and every byte is counted. Writes into DIR: {', '.join(FILES)}. The clients' model, "
        "method and data are given as to rosler train; a schedule of the learning rate is over "
        "rounds."
    ),
    examples=(
        "rosler federate --data cwru --manual-dir mat --split recording --clients 40 "
        "--participation 0.5 --rounds 50 --method seeded --rank 8 --hidden 256 --out runs/bearings",
        "rosler federate --data mnist --split dirichlet:0.3 --clients 100 --method seeded "
        "--rank 32 --rounds 200 --out runs/digits",
        "rosler federate --data mnist5k --clients 20 --participation 1 --secure --method chain "
        "--exchange sketches --upload float32 --out runs/masked",
        "rosler federate --resume runs/digits",
        "rosler federate --network server --address 0.0.0.0:8080 --certificate server.pem --key "
        "server.key --data mnist5k --clients 3 --participation 1 --method seeded --out runs/fleet",
        "rosler federate --network client --address fleet.example:8080 --client-number 2 --data "
        "mine.npz --state client2.npz",
    ),
    add_arguments=add_arguments,
    run=run,
    interrupted=interrupted,
)
