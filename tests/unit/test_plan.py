"""Plans: what runs where, for every size; stock is stock."""

from __future__ import annotations

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.shape import ClusterShape, Node
from orchestrator.config import AppConfig, Device, EngineConfig, KvUpdate, ModelConfig, ModelSource
from orchestrator.errors import ConfigError
from orchestrator.fleet.plan import make_plan
from orchestrator.models import folder


def app_of(replicas: int, size: int, device: Device, each: float = 1.0) -> AppConfig:
    app = AppConfig(model=ModelConfig(name="m", id="/m"), replicas=replicas)
    app.engine.tensor_parallel_size, app.engine.device, app.engine.cpus_per_rank = size, device, each
    return app


shapes = st.lists(st.builds(Node, cpus=st.integers(1, 64), gpus=st.integers(0, 8)), min_size=1, max_size=8)


@given(shapes, st.integers(1, 6), st.integers(1, 16), st.sampled_from(list(Device)))
def test_a_plan_fits_the_cluster_or_is_refused(nodes, replicas, size, device) -> None:
    shape = ClusterShape(tuple(nodes))
    app = app_of(replicas, size, device)
    try:
        plan = make_plan(app, shape, model="/m", scratch="/s")
    except ConfigError as error:
        too_many = replicas * size > shape.total(device)
        assert too_many or (device is Device.cpu and size > shape.largest(device))
        assert error.hint
        return
    resource = "GPU" if device is Device.gpu else "CPU"
    assert sum(b[resource] for r in plan.replicas for b in r.bundles) == replicas * size
    assert len({r.spec.scratch for r in plan.replicas}) == replicas
    for replica in plan.replicas:
        assert all(b[resource] <= shape.largest(device) for b in replica.bundles)
        backend = replica.spec.args.get("distributed_executor_backend")
        assert backend == ("ray" if len(replica.bundles) > 1 else "mp" if size > 1 else None)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(2, 64))
def test_heads_are_split_evenly_or_refused(attention, kv, size) -> None:
    model = ModelConfig(name="m", source=ModelSource.tiny, tiny={})
    heads = {"num_attention_heads": attention, "num_key_value_heads": kv}
    if attention % size == 0 and (kv % size == 0 or size % kv == 0):
        folder.check_sizes(model, heads, EngineConfig(tensor_parallel_size=size))
    else:
        with pytest.raises(ConfigError, match="does not divide"):
            folder.check_sizes(model, heads, EngineConfig(tensor_parallel_size=size))


def test_stock_is_plain_vllm() -> None:
    app = app_of(2, 1, Device.cpu)
    app.fast_cold_start = False
    plan = make_plan(app, ClusterShape((Node(8),)), model="/m", scratch="/s")
    assert not plan.share_graphs
    for replica in plan.replicas:
        assert "additional_config" not in replica.spec.args
        assert replica.spec.env["VLLM_PLUGINS"] == ""
        assert replica.spec.stock
        assert not replica.spec.preload


def test_the_mode_reaches_vllms_key() -> None:
    app = app_of(1, 1, Device.cpu)
    app.cold_start.kv_update = KvUpdate.inline
    plan = make_plan(app, ClusterShape((Node(8),)), model="/m", scratch="/s")
    assert plan.replicas[0].spec.args["additional_config"] == {
        "orchestrator": {"kv_update": "inline", "trace_once": True}
    }


def test_a_plan_travels_through_ray() -> None:
    plan = make_plan(app_of(2, 2, Device.gpu), ClusterShape((Node(8, 4),)), model="/m", scratch="/s")
    assert cloudpickle.loads(cloudpickle.dumps(plan)) == plan
