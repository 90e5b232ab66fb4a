"""The engine on vLLM: one engine for a whole study, its weights replaced in place."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from evomerge import errors
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.engines import vllm_setup
from evomerge.engines.likelihoods import check_logliks, mean_logliks
from evomerge.engines.stacking import projections
from evomerge.engines.tokens import Codec, cut, seed_of
from evomerge.errors import CandidateError, ConfigError, EngineError, Problem, UserError
from evomerge.recipe import Recipe
from evomerge.types import FloatArray, Generation, Prompt, Sampling

_WORKER = "evomerge.engines.vllm_worker.MergeWorkerExtension"


class VllmEngine:
    """Starts vLLM once, inside this process, and streams every recipe's weights into it.

    Its number of blocks is fixed: a recipe of fewer is filled up with identities, blocks that
    add nothing.

    The merge runs in vLLM's worker (in each of them, with tensor parallelism): only the
    recipe's plain data is sent there. Prompts are tokenised as `TransformersEngine` does and
    sent as ids; answers are decoded here, too, so both engines see and give the same text.

    The prefix cache lives within one recipe: `load` empties it. A process holds one such
    engine at a time; another can be made once the first is closed.
    """

    _running: ClassVar[VllmEngine | None] = None

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        threads: int = 1,
        seed: int = 0,
        max_model_len: int | None = None,
        cores: Sequence[int] | None = None,
        kv_cache_gb: float | None = None,
        lora: bool = False,
        quiet: bool = True,
        trust_remote_code: bool = False,
        **engine_args: Any,
    ) -> None:
        """Starts the engine on a checkpoint.

        Args:
            model: directory that gives architecture, tokenizer and first weights.
            dtype: as vLLM takes it; `auto` is the checkpoint's own on a GPU and float32 on a CPU,
                where bfloat16 without instructions for it takes three times as long. The weights
                are rounded to the recipe's dtype first, in any case.
            threads: compute threads on a CPU.
            seed: of the sampling at a temperature above 0.
            max_model_len: most tokens of prompt and answer; None takes the model's limit.
            cores: core numbers this process is bound to; None leaves it where it is.
            kv_cache_gb: room for the key-value cache in GiB. None means 0.5 on a CPU and, on a
                GPU, what `gpu_memory_utilization` leaves.
            lora: give vLLM a recipe that sums LoRA adapters of `model` as one adapter instead of
                merged weights, up to its `max_lora_rank` (here 64 by default). A swap is cheap and
                answers are dearer: measure before you turn it on.
            quiet: log errors only.
            trust_remote_code: run code that comes with the checkpoint.
            **engine_args: any other argument of `vllm.LLM`.

        Raises:
            ConfigError: if vLLM is absent, of an untested release, or refuses an argument.
            EngineError: if it does not start, or another one runs in this process.
        """
        self._llm: Any = None
        self._closed = True
        vllm_setup.check_version(vllm_setup.installed_version())
        vllm_setup.check_arguments(engine_args)
        self._affinity = vllm_setup.prepare(threads, cores, quiet)
        self._codec = Codec(model, max_model_len, trust_remote_code)
        self._seed = seed
        self._quiet = quiet
        self._arguments: dict[str, Any] = {
            "enforce_eager": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": not quiet,
            **engine_args,
            "model": str(model),
            "dtype": dtype,
            "seed": seed,
            "max_model_len": max_model_len,
            "worker_extension_cls": _WORKER,
            "trust_remote_code": trust_remote_code,
        }
        if lora:
            # Without the head: vLLM cannot score prompts on a CPU where that may have factors.
            own = projections(Checkpoint(str(model), "models.base"))
            limits = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 64}
            self._arguments = limits | {"lora_target_modules": own} | self._arguments
        self._lora = lora
        self._adapter = False
        self._kv_cache_gb = kv_cache_gb
        self._failed = self._broken = False
        if VllmEngine._running is not None:
            raise EngineError("this process already runs a vLLM engine; close that one first")
        self._start()
        self._closed = False
        VllmEngine._running = self

    def load(self, recipe: Recipe) -> None:
        """Merges a recipe into the running model.

        Raises:
            CandidateError: if a weight is not finite, the merge has more blocks than the model or
                a head of its own where that of the model is tied, or the update fails. The
                engine answers nothing until a later load has succeeded; if the update stopped
                half-way, that load starts vLLM anew first.
            UserError: if the recipe or its sources are at fault.
            EngineError: if the engine is closed or cannot be started anew.
        """
        self._open()
        if self._broken:
            self._restart()
        self._failed = self._broken = True
        try:
            arguments = (recipe.to_dict(), self._lora)
            replies = self._llm.collective_rpc("evomerge_load", args=arguments)
        except Exception as error:
            raise CandidateError(f"the weights could not be updated: {error}") from error
        self._broken = not all(reply["sound"] for reply in replies)
        for reply in replies:
            if not reply["ok"]:
                raise _error(reply)
        if not self._llm.reset_prefix_cache():
            self._broken = True
            raise CandidateError("vLLM did not let go of the cache of the weights before")
        self._adapter = all(reply.get("adapter", False) for reply in replies)
        self._failed = False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Answers every prompt, a text or token ids, in the order given.

        Raises:
            ConfigError: if a prompt leaves no room for an answer.
            EngineError: if the engine is closed, broken, or its last load failed.
        """
        self._ready()
        ids = self._codec.prompts(prompts)
        if not ids:
            return []
        stop = [s for s in sampling.stop if s]
        settings = self._settings(ids, sampling, stop)
        answers = [list(output.outputs[0].token_ids) for output in self._run(ids, settings)]
        texts = self._codec.decode_all(answers)
        return [
            Generation(cut(text, stop), len(answer))
            for text, answer in zip(texts, answers, strict=True)
        ]

    def _settings(
        self, ids: Sequence[Sequence[int]], sampling: Sampling, stop: list[str]
    ) -> list[Any]:
        """vLLM's settings of each prompt; equal ones are one object, as vLLM copies them."""
        from vllm import SamplingParams

        seed = self._seed if sampling.seed is None else sampling.seed
        made: dict[tuple[int, int | None], Any] = {}
        found = []
        for i, row in enumerate(ids):
            room = self._codec.room(len(row), sampling.max_new_tokens)
            own = (room, seed_of(seed, i) if sampling.temperature > 0 else None)
            if own not in made:
                made[own] = SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    min_p=sampling.min_p,
                    repetition_penalty=sampling.repetition_penalty,
                    max_tokens=room,
                    stop=stop,
                    stop_token_ids=list(self._codec.eos_ids),
                    include_stop_str_in_output=True,
                    detokenize=bool(stop),
                    seed=own[1],
                    skip_clone=True,
                )
            found.append(made[own])
        return found

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Mean log-likelihood a token (nats) of each continuation given its context.

        Context and continuation are tokenised together; see `Codec.pair`.

        Returns:
            a `len(pairs)` array.

        Raises:
            NotFiniteError: if a value is not finite.
            TaskError: if a continuation has no token.
            EngineError: if the engine is closed, broken, or its last load failed.
        """
        return mean_logliks(pairs, self._codec, self.score_tokens)

    def score_tokens(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of the ends of rows of tokens, and whether each is the greedy one.

        Args:
            rows: token ids, at most `score_length`, and the index of the first one to score, at
                least 1.

        Raises:
            NotFiniteError: if a value is not finite.
            EngineError: if the engine is closed, broken, or its last load failed.
        """
        from vllm import SamplingParams

        self._ready()
        if not rows:
            return []
        settings = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, skip_clone=True
        )
        outputs = self._run([list(ids) for ids, _ in rows], settings)
        values = []
        for (ids, start), output in zip(rows, outputs, strict=True):
            places = range(start, len(ids))
            picked = [output.prompt_logprobs[place][ids[place]] for place in places]
            value = float(sum(one.logprob for one in picked))
            values.append((value, all(one.rank == 1 for one in picked)))
        check_logliks(values)
        return values

    @property
    def codec(self) -> Codec:
        """Text to token ids and back."""
        return self._codec

    @property
    def score_length(self) -> int | None:
        """Most tokens of a row to score: vLLM keeps room for one more. None without a limit."""
        return None if self._codec.max_len is None else self._codec.max_len - 1

    def close(self) -> None:
        """Frees the model; the engine cannot be used afterwards. A second call does nothing.

        Another engine may be made in the same process afterwards.
        """
        if not self._closed:
            self._closed = True
            VllmEngine._running = None
            self._stop()
            vllm_setup.restore_affinity(self._affinity)

    def _run(self, ids: list[list[int]], settings: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": row} for row in ids]
        try:
            with vllm_setup.uncompiled(self._arguments["enforce_eager"]):
                return list(
                    self._llm.generate(
                        prompts, settings, use_tqdm=False, lora_request=self._request()
                    )
                )
        except Exception as error:
            self._failed = self._broken = True
            raise EngineError(f"vLLM failed: {type(error).__name__}: {error}") from error

    def _request(self) -> Any:
        """The adapter that the answers need; None where the weights are merged."""
        if not self._adapter:
            return None
        from vllm.lora.request import LoRARequest

        from evomerge.engines.vllm_worker import ADAPTER

        return LoRARequest("merged", ADAPTER, "in memory")

    def _start(self) -> None:
        with vllm_setup.undisturbed(self._quiet):
            import vllm
            from vllm.platforms import current_platform

            arguments = dict(self._arguments)
            size = self._kv_cache_gb
            if current_platform.is_cpu():
                size = 0.5 if size is None else size
                if arguments["dtype"] == "auto":
                    arguments["dtype"] = "float32"
            if size is not None:
                arguments.setdefault("kv_cache_memory_bytes", int(size * 2**30))
            try:
                with vllm_setup.readable_modules():
                    self._llm = vllm.LLM(**arguments)
            except TypeError as error:
                raise ConfigError.of(
                    "engine.args", str(error), "arguments of vllm.LLM", "Correct the name."
                ) from error
            except Exception as error:
                self._stop()
                raise EngineError(f"vLLM did not start: {type(error).__name__}: {error}") from error

    def _stop(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        cleanup_dist_env_and_memory()

    def _restart(self) -> None:
        self._stop()
        self._start()
        self._broken = False

    def _open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; make a new one")

    def _ready(self) -> None:
        self._open()
        if self._failed:
            raise EngineError("the engine holds no model, since its last load failed; load another")


def _error(reply: dict[str, Any]) -> Exception:
    """The exception that a worker's reply stands for."""
    kind: type[Exception] = getattr(errors, reply.get("kind", ""), CandidateError)
    if issubclass(kind, UserError):
        return kind([Problem(*problem) for problem in reply["problems"]])
    return kind(reply["error"])
