"""Several reward models as one verifier, each metered by itself."""

import asyncio
import math
import statistics
from types import SimpleNamespace

import pytest
from test_reward_verifiers import ASKED, TASK, TEXTS, make, score, values

from posttrain.core.errors import ConfigError
from posttrain.core.types import Score
from posttrain.engines.meter import Account, Metered
from posttrain.pipeline.recipe import EvalStage
from posttrain.pipeline.verifying import scorers
from posttrain.verifiers.reward_ensemble import RewardEnsemble


def test_each_way_of_putting_rewards_together(tmp_path):
    folders = [make(tmp_path / name, "SequenceClassification", seed=i) for i, name in enumerate("abc")]
    alone = [values(f"reward_model:model={folder},dtype=float32") for folder in folders]
    spec = f"reward_ensemble:models=[{','.join(map(str, folders))}],dtype=float32"
    by_text = list(zip(*alone, strict=True))
    assert values(spec) == pytest.approx([statistics.fmean(r) for r in by_text], abs=1e-5)
    assert values(spec + ",combine=min") == pytest.approx([min(r) for r in by_text], abs=1e-5)
    less = [statistics.fmean(r) - 2 * statistics.pstdev(r) for r in by_text]
    assert values(spec + ",combine=mean-std,penalty=2") == pytest.approx(less, abs=1e-5)
    account = Account()
    score(spec, meter=lambda engine, role: Metered(engine, account, role))
    one = Account()
    score(f"reward_model:model={folders[0]},dtype=float32", meter=lambda engine, role: Metered(engine, one, role))
    assert account.by_role()["verifier"].usage.scored == 3 * one.by_role()["verifier"].usage.scored
    assert account.by_role()["verifier"].flops == pytest.approx(3 * one.by_role()["verifier"].flops)


def test_disagreement_is_counted_and_a_missing_reward_is_none():
    def part(*rewards):
        async def scored(example, texts):
            return [Score(value=reward) for reward in rewards]

        return scored

    made = RewardEnsemble(task=TASK, models=("a", "b"), parts=(part(1.0, 2.0, math.nan), part(3.0, 2.0, 1.0)))
    found = asyncio.run(made(ASKED, TEXTS[:3]))
    assert [s.value for s in found[:2]] == [2.0, 2.0]
    assert math.isnan(found[2].value)
    assert made.tally == {"texts": 2, "disagreement": 1.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reward_ensemble:models=[a]", "models names fewer than two"),
        ("reward_ensemble", "its setting 'models' must be given"),
        ("reward_ensemble:models=[a,b],penalty=2", "penalty is read with combine=mean-std only"),
        ("reward_ensemble:models=[a,b],parts=[c]", "unknown key 'parts'"),
    ],
)
def test_settings_that_make_no_sense(spec, message):
    with pytest.raises(ConfigError, match=message):
        score(spec)


def test_every_models_content_is_part_of_an_evaluations_key_and_stages_may_be_named(tmp_path):
    folders = [make(tmp_path / name, "SequenceClassification", seed=i) for i, name in enumerate("ab")]
    spec = f"reward_ensemble:models=[{folders[0]},{folders[1]}]"
    found = scorers(SimpleNamespace(verifiers=(spec,)))[spec]
    assert found.count(",") == 1
    staged = EvalStage(strategy="best_of_n:verifier=(reward_ensemble:models=[stage:one,stage:two])")
    assert staged.scoring == ("one", "two")
    assert scorers(SimpleNamespace(verifiers=("reward_ensemble:models=[stage:one,stage:two]",))) == {}
