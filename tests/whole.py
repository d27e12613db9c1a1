"""Tests that only `make test-all` runs, each with the reason: `make test` has to stay below 15 minutes on two cores.

`make test` keeps one comparison with stock vLLM for each kind of attention, each way to fail once, and each job once.
A name stands for all its parameters, or for those in brackets. A test named on pytest's command line runs anyway.
"""

from __future__ import annotations

_MODES = "engine/test_modes.py::"
_AS_STOCK = f"{_MODES}test_tokens_and_kv_bytes_are_stocks_cold_and_warm"
_SHAPED = "engine/test_random_shapes.py::"
SHAPE_KINDS = ("dense", "moe", "mla")
SHAPES = 20  # of each kind, of which make test runs the first

# reason -> tests
LONG: dict[str, tuple[str, ...]] = {
    "one more architecture of a kind of attention that make test has": (
        f"{_AS_STOCK}[tiny_qwen3-3]",
        f"{_AS_STOCK}[tiny_mixtral-3]",
        f"{_AS_STOCK}[tiny_gemma3-3]",
        f"{_AS_STOCK}[tiny_zamba2-5]",
        f"{_MODES}test_layers_that_share_a_kv_cache",
    ),
    "starts stock vLLM, which compiles a whole graph at each start": (
        f"{_MODES}test_references_are_what_stock_says_today",
        f"{_MODES}test_tensor_parallel_ranks_say_and_store_what_stocks_do",
        "engine/test_sharing.py::test_a_sweep_sets_ours_beside_stock",
    ),
    "one more made-up shape of a kind; make test has one of each": tuple(
        f"{_SHAPED}test_layer_index_is_split_cold_and_warm[{kind}-{number}]"
        for kind in SHAPE_KINDS
        for number in range(1, SHAPES)
    ),
    "two more starts; the guard's own failure is in test_resolver.py": (
        f"{_SHAPED}test_two_layers_in_each_others_place_are_seen",
    ),
    "eight starts each, or stock's; the other tests of bfloat16 and float32 compare fewer modes": (
        f"{_SHAPED}test_every_mode_is_the_same_cold_and_warm",
        f"{_SHAPED}test_float32_is_stocks",
        f"{_MODES}test_every_mode_is_the_same_in_bfloat16",
        f"{_MODES}test_every_mode_is_stocks_in_float32",
        f"{_MODES}test_what_differs_from_stock_in_bfloat16_is_rounding",
    ),
    "seven starts; test_resolver.py has the guard, test_kv_pass.py the modes": (
        f"{_MODES}test_modes_do_not_share_a_cache_and_the_guard_raises",
    ),
    "a start for each fault and host; tests/unit/test_start.py has them over fakes": (
        "engine/test_start.py",
        "engine/test_vllm_engine.py::test_a_failing_start_gives_the_root_cause_in_seconds",
    ),
    "two ranks on two cores are slow": ("engine/test_sharing.py::test_tensor_parallel_ranks_share_too",),
    "one more job by ray job submit, of which make test has two": (
        "ray/test_job_submit.py::test_a_warm_job",
        "ray/test_job_submit.py::test_a_sweep_whose_outputs_go_to_shared_storage",
    ),
    "tests/unit shows the same without Ray": (
        "ray/test_sweeps.py::test_a_suite_goes_on_after_a_failure_and_makes_one_page",
        "ray/test_jobs.py::test_a_report_that_cannot_be_written_keeps_the_figures",
        "ray/test_sweeps.py::test_cells_run_models_and_engines_of_ones_own",
    ),
    "tests/ray shows the same with the fake engine": (
        "engine/test_warm.py",
        "engine/test_two_nodes.py",
        "engine/test_forked_replicas.py::test_every_loss_is_made_good_by_the_next_start",
        "engine/test_forked_replicas.py::test_a_preload_module_that_fails_costs_time_not_a_replica",
    ),
    "a second service; test_serve.py has one": (
        "engine/test_serve_apps.py::test_a_config_file_with_two_models_one_of_them_at_zero",
    ),
    "two replicas that import vLLM each; test_serve.py has the callback in a service of ours": (
        "engine/test_serve_apps.py::test_the_callback_alone_shares_graphs_in_an_application_of_rays",
        "engine/test_serve_apps.py::test_lora_adapters_and_prefix_aware_routing_through_the_callback",
    ),
    "a service with two replicas, six clients, and five minutes of a fuzzer; test_serve.py has the official client": (
        "engine/test_clients.py",
    ),
    "a service as a Ray job, and 10,000 requests": ("engine/test_serve_job.py",),
    "a service and 1,000 clients; tests/unit/test_waiting_room.py has the places": ("ray/test_from_zero.py",),
    "five services; tests/unit/test_front.py has what is refused": ("ray/test_guests.py",),
    "two services; engine/test_serve.py has the first Ctrl-C": ("ray/test_serve_ending.py",),
    "three clusters of two nodes; whose proxies are where is Ray Serve's own": ("ray/test_proxies.py",),
    "100,000 seeds; make test has the first thousand": ("simulation/test_simulation.py::test_and_in_many_more_runs",),
    "half a minute each; make test has a tenth of the herd": (
        "simulation/test_herd.py::test_a_cold_herd_and_then_a_warm_one[large-fits]",
        "simulation/test_herd.py::test_a_cold_herd_and_then_a_warm_one[large-too-large]",
    ),
    "two minutes each; make test has a few seconds of both": (
        "ray/test_store_under_fire.py::test_every_acknowledged_entry_loads[long-folder]",
        "ray/test_store_under_fire.py::test_every_acknowledged_entry_loads[long-s3]",
    ),
    "a Ray for each run; tests/unit/test_batch_dataset.py has the rows": ("ray/test_batch_dataset.py",),
    "20,000 requests (ORCHESTRATOR_TEST_ROWS for more); tests/commands/test_batch.py has each fault with a few": (
        "ray/test_long_batch.py",
    ),
    "a fleet answers each in the same way; tests/unit/test_bundle.py has each damage": (
        "ray/test_cache_faults.py::test_a_damaged_bundle_is_refused_and_replaced[empty]",
        "ray/test_cache_faults.py::test_a_damaged_bundle_is_refused_and_replaced[half]",
    ),
    "waits until Ray gives up": ("ray/test_ray_start.py::test_without_given_ports_it_does_not",),
    "a Ray Serve of its own; tests/unit/test_warm_ahead.py has what a front does with its rank": (
        "ray/test_serve_controller.py::test_one_of_several_replicas_is_the_first_and_another_when_it_is_gone",
    ),
    "16 or 64 actors on two cores; tests/unit/test_fleet_parts.py has 64 that are no processes": (
        "ray/test_fleet.py::test_all_that_start_are_looked_at_in_one_go",
    ),
    "half a minute of set-up; test_nodes.py and test_s3.py have graphs that others compiled": (
        "ray/test_multi_node.py::test_the_second_node_starts_without_compiling",
    ),
    "200 bundles; tests/unit/test_node_cache.py has the limits with a few": (
        "ray/test_nodes.py::test_two_hundred_bundles_come_and_go_and_nothing_stays",
    ),
    "measures first, with up to eight replicas at once": (
        "ray/test_sweeps.py::test_large_clusters_are_simulated_from_what_is_measured",
    ),
    "two services, a minute of load each; tests/unit/test_autoscale_check.py has the counting": (
        "ray/test_sweeps.py::test_the_simulated_service_is_set_beside_a_real_one",
    ),
    "clusters of one and two nodes; test_weights_nodes.py has four": (
        "ray/test_sweeps.py::test_what_a_models_origin_sends_is_measured",
    ),
    "in a cluster of four nodes; tests/unit/test_swarm.py and test_weights_store.py have these faults": (
        "ray/test_weights_nodes.py::test_a_node_that_is_killed_leaves_the_others_whole",
        "ray/test_weights_nodes.py::test_a_byte_that_is_wrong_at_a_peer_is_refused",
        "ray/test_weights_nodes.py::test_a_restarted_directory_learns_what_is_where",
        "ray/test_weights_nodes.py::test_an_origin_that_is_gone_is_told",
    ),
}
NAMES = frozenset(name for names in LONG.values() for name in names)


def is_long(test: str) -> bool:
    """Is a test, named as pytest does, below `tests/`, one of them?"""
    return bool(NAMES & {test, test.partition("[")[0], test.partition("::")[0]})
