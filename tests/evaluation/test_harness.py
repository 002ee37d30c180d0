"""The lm-evaluation-harness on local tasks: our adapter against its own model, and thoughts in it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.data import chat
from fqs_jax.evaluation import harness_options
from fqs_jax.inference import continuations, generation
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker
from fqs_jax.thinking.keys import thought_keys
from fqs_jax.thinking.prediction import think
from tests.tiny_runs import clock_config, hf_folder, save_stage

pytest.importorskip(
    "lm_eval",
    reason="lm_eval is not installed: with what it needs it is 300 MB, so it is in no extra but "
    "`eval`; pip install 'fqs_jax[eval]'",
)
THINKS, NTP = "1", "3"
STOPS = ("-2 -2", "+1")
TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{question}}"
        doc_to_choice: ["0", "1", "2", "3 +1 = 4"]
        doc_to_target: answer
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "text": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{question}}"
        metric_list: [{metric: word_perplexity}]
        """,
    "generated": """
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: ["-2 -2", "+1"], max_gen_toks: 12}
        metric_list: [{metric: exact_match}]
        """,
}
NUM_DOCUMENTS = 8


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """W is a working directory with a thinking and a thought-free stage, `ntp` the latter exported."""
    place = tmp_path_factory.mktemp("harness")
    for number in (THINKS, NTP):
        save_stage(place / "W", clock_config(), int(number), seed=int(number))
    model = loading.load(str(place / "W"), NTP)
    huggingface.export(model.params["lm"], model.model, place / "ntp", model.source)
    return place


@pytest.fixture(scope="module")
def manager(place):
    from lm_eval.tasks import TaskManager

    rng = np.random.default_rng(0)
    words = ["0", "1", "2", "3", "4", "+1", "+3", "*2", "=", ":", "what"]
    asked = [" ".join(rng.choice(words, rng.integers(2, 8))) for _ in range(NUM_DOCUMENTS - 1)]
    asked.append(" ".join(rng.choice(words, 150)))  # longer than the model was made for
    lines = [json.dumps({"question": text, "answer": i % 4}) for i, text in enumerate(asked)]
    (place / "tasks").mkdir()
    (place / "tasks" / "test.jsonl").write_text("\n".join(lines))
    where = f"""
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: "{place}/tasks/test.jsonl"}}}}
        test_split: test
        """
    for name, settings in TASKS.items():
        yaml = "\n".join(line.strip() for line in f"task: {name}\n{where}{settings}".splitlines())
        (place / "tasks" / f"{name}.yaml").write_text(yaml)
    return TaskManager(include_path=str(place / "tasks"), include_defaults=False)


def evaluate(manager, task, model, arguments, batch_size=8):
    """The harness's results, and what the model answered, by document."""
    import lm_eval

    import fqs_jax.lm_eval_adapter  # noqa: F401  makes the model known

    done = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=manager,
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=0,
    )
    samples = sorted(done["samples"][task], key=lambda sample: sample["doc_id"])
    assert len(samples) == NUM_DOCUMENTS
    return done["results"][task], [sample["filtered_resps"] for sample in samples]


def without_names(results):
    return {key: value for key, value in results.items() if isinstance(value, float)}


@pytest.mark.parametrize("task, options", [("choice", ""), ("text", ",add_bos_token=False")])
def test_the_harness_scores_an_exported_folder_as_its_own_model(place, manager, task, options):
    pytest.importorskip("accelerate")
    folder = f"pretrained={place / 'ntp'},dtype=float32{options}"
    results, answers = evaluate(manager, task, "hf", folder)
    our_results, ours = evaluate(manager, task, "fqs_jax", f"checkpoint={place / 'W'},stage={NTP}")
    np.testing.assert_allclose(np.array(ours, float), np.array(answers, float), atol=1e-4)
    assert without_names(our_results) == pytest.approx(without_names(results), rel=1e-4)
    assert len(without_names(results)) >= 1


def test_thoughts_are_thought_one_position_after_another(place, manager):
    """Every answer's log-probability, from `think` at each of its positions alone."""
    arguments = f"checkpoint={place / 'W'},stage={THINKS},seed=5"
    _, scored = evaluate(manager, "choice", "fqs_jax", arguments)

    model = loading.load(str(place / "W"), THINKS)
    room = 16

    @jax.jit
    def at(params, row, mask, index, number):
        keys = thought_keys(jax.random.key(5), index, 1, number)
        following, _ = think(params, row, keys, Thinker(model.model, model.thought), mask, index)
        return following.log_prob_BxPxRxV[0, 0, 0]

    documents = [json.loads(line) for line in (place / "tasks" / "test.jsonl").open()]
    number = 0
    for document, answers in zip(documents, scored, strict=True):
        for choice, (log_prob, greedy) in zip(["0", "1", "2", "3 +1 = 4"], answers, strict=True):
            asked = continuations.encode(model.tokenizer, document["question"], f" {choice}")
            row = asked.context + asked.continuation
            if len(row) <= room:
                padded = jnp.array([row + [0] * (room - len(row))])
                mask = jnp.arange(room)[None] < len(row)
                expected, best = 0.0, True
                for t in range(len(asked.context) - 1, len(row) - 1):
                    found = at(model.params, padded, mask, jnp.array([[t]]), jnp.array([number]))
                    expected += float(found[row[t + 1]])
                    best &= int(found.argmax()) == row[t + 1]
                assert log_prob == pytest.approx(expected, abs=1e-4) and greedy == best
            number += 1


@pytest.mark.parametrize("stage", [THINKS, NTP])
def test_generation_ends_before_the_first_stop_text(place, manager, stage, monkeypatch):
    steps = []
    generate = generation.generate

    def counted(*arguments, on_step, **options):
        def step(emitted):
            steps.append(emitted)
            on_step(emitted)

        return generate(*arguments, on_step=step, **options)

    monkeypatch.setattr(generation, "generate", counted)
    arguments = f"checkpoint={place / 'W'},stage={stage},thought_temperature=0"
    _, answers = evaluate(manager, "generated", "fqs_jax", arguments, batch_size=4)
    assert len(steps) < 12 * NUM_DOCUMENTS // 4  # batches are not generated to the end

    model = loading.load(str(place / "W"), stage)
    if model.thought is not None:
        thought = dataclasses.replace(model.thought, temperature=0.0)
        model = dataclasses.replace(model, thought=thought)
    documents = [json.loads(line) for line in (place / "tasks" / "test.jsonl").open()][:-1]
    asked = [document["question"] for document in documents]
    whole = generate(model, asked[:4], 12) + generate(model, asked[3:], 12)[1:]
    ended = 0
    for [answer], generated in zip(answers, whole, strict=False):
        ends = [generated.text.find(stop) for stop in STOPS if stop in generated.text]
        assert answer == generated.text[: min(ends, default=None)]  # None: all of it
        ended += bool(ends)
    assert ended


def test_repeated_requests_are_sampled_anew(place):
    """The harness asks for k samples by k equal requests, which fill several batches."""
    from lm_eval.api.instance import Instance

    from fqs_jax.lm_eval_adapter import FqsJax

    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    asked = [Instance("generate_until", {}, ("the cat", settings), 0)] * 6
    texts = [
        FqsJax(str(place / "W"), NTP, batch_size=size).generate_until(asked) for size in (1, 4)
    ]
    assert texts[0] == texts[1] and len(set(texts[0])) > 4


def test_options(place):
    from fqs_jax.lm_eval_adapter import FqsJax

    root = str(place / "W")
    assert FqsJax(root, THINKS).loaded.thought is not None
    assert FqsJax(root, THINKS, think=False).loaded.thought is None
    assert FqsJax(root, THINKS, thought_temperature=0).loaded.thought.temperature == 0


def test_a_cropped_context_is_its_last_tokens(tmp_path):
    from fqs_jax.lm_eval_adapter import FqsJax

    words = FqsJax(str(hf_folder(tmp_path / "model")))
    longest = words.loaded.model.max_seq_len
    context = "afraidofseventreesnobody" * 9
    ids = generation.prompt_ids(words.loaded, context)
    for room in range(1, 30):
        assert words._fitted(context, longest - room) == ids[-room:]
    assert words._fitted("the cat", 3) == generation.prompt_ids(words.loaded, "the cat")


def test_what_cannot_be_is_refused(place):
    from fqs_jax.lm_eval_adapter import FqsJax

    root = str(place / "W")
    with pytest.raises(UserError, match="500 new tokens leave no room"):
        FqsJax(root, NTP)._fitted("0 +1", 500)
    with pytest.raises(UserError, match="seed must be a whole number, 0 to 4294967295"):
        FqsJax(root, NTP, seed=10**20)
    with pytest.raises(UserError, match="thought_temperature must .* not nan"):
        FqsJax(root, THINKS, thought_temperature="nan")
    for batch_size in (0, "-1", "many", "1.5", 10**6, "9" * 5000):
        with pytest.raises(UserError, match="batch_size is a number"):
            FqsJax(root, NTP, batch_size=batch_size)
    with pytest.raises(UserError, match="no stage '9'"):
        FqsJax(root, "9")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (
            "pretrained=W",
            "no 'pretrained'; write checkpoint= for it; there are checkpoint, stage, ",
        ),
        ("checkpoint=W,dtype=float32", "no 'dtype'; there are checkpoint, stage, think, "),
        ("", "no checkpoint=FOLDER; there are checkpoint, "),
        ("checkpoint=", "no checkpoint=FOLDER; there are checkpoint, "),
        ("checkpoint=W,think=maybe", "think must be True or False, not maybe"),
        ("checkpoint=W,think=2", "think must be True or False, not 2"),
        ("checkpoint=W,seed=x", "seed must be a whole number, 0 to 4294967295, not x"),
        ("checkpoint=W,seed=1.5", "not 1.5"),
        ("checkpoint=W,seed=true", "not True"),
        ("checkpoint=W,seed=inf", "not inf"),
        ("checkpoint=W,max_gen_toks=0", "max_gen_toks must be a whole number, 1 to "),
        ("checkpoint=W,fsdp=0", "fsdp must be a whole number, 1 to "),
        ("checkpoint=W,thought_temperature=-1", "thought_temperature must be a number, 0 to "),
        ("checkpoint=s3://bucket/W", "is an address"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, reason):
    from fqs_jax.lm_eval_adapter import FqsJax

    with pytest.raises(UserError) as refused:
        FqsJax.create_from_arg_string(arguments, {"batch_size": 1, "device": None})
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_arguments_of_both_kinds(place):
    from fqs_jax.lm_eval_adapter import FqsJax

    given = {"checkpoint": str(place / "W"), "stage": 3, "think": "false", "seed": "7"}
    flags = {"batch_size": 4, "max_batch_size": None, "device": "cpu"}
    model = FqsJax.create_from_arg_obj(given | {"trust_remote_code": True}, flags)
    assert model._batch_size == 4 and model._seed == 7
    assert FqsJax.create_from_arg_obj(given | {"batch_size": 2}, flags)._batch_size == 2


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"until": 5}, "until must be a text or a list of texts, not 5"),
        ({"until": ["a", None]}, "until must be a text or a list of texts"),
        ({"temperature": "hot"}, "temperature must be a number, 0 to inf, not hot"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature must be a number"),
        ({"max_gen_toks": "many"}, "cannot be used"),
        ({"max_gen_toks": 0}, "max_gen_toks must be a whole number, 1 to "),
    ],
)
def test_settings_of_generated_texts_that_cannot_be(settings, reason):
    with pytest.raises(UserError, match=reason):
        harness_options.sampling(settings, 16)


def test_settings_of_generated_texts():
    plain = harness_options.sampling({"until": "\n", "temperature": None}, 16)
    assert plain == (["\n"], 16, 0.0, 1.0)
    greedy = harness_options.sampling({"do_sample": False, "temperature": 0.7, "max_tokens": 5}, 16)
    assert greedy == ([], 5, 0.0, 1.0)
    drawn = harness_options.sampling({"temperature": 0.7, "top_p": 0.9, "max_gen_toks": 3}, 16)
    assert drawn == ([], 3, 0.7, 0.9)


def test_generation_settings_without_effect_are_named():
    settings = {"until": ["a"], "max_gen_toks": 3, "num_beams": 4, "top_k": 5}
    assert harness_options.unused(settings) == ["num_beams", "top_k"]


def test_texts_are_kept_under_another_name_for_another_template(tmp_path):
    def template_of(text, bos):
        return chat.ChatTemplate(text, {"bos_token": bos}, tmp_path)

    names = {template_of(text, "<s>").fingerprint() for text in ("a", "a", "b")}
    assert len(names | {template_of("a", "<t>").fingerprint()}) == 3


def test_errors_of_the_harness_itself_are_told_from_ours():
    from fqs_jax import lm_eval_adapter

    def error_of(work):
        with pytest.raises(Exception) as raised:
            work()
        return raised.value

    assert lm_eval_adapter._is_of_harness(error_of(lambda: json.loads("{")))
    assert not lm_eval_adapter._is_of_harness(error_of(lambda: chat.choose(None, None)))
