"""The server as untrusted clients, client libraries and operators use it.

What goes wrong with servers elsewhere, and the tests that it does not here. A file is named without
its `test_`; tests without a file are of `malformed`.

| what | tests |
|---|---|
| 1 bodies: empty, torn, deep, huge, a key twice, NaN | bodies_that_are_no_request, bodies_that_are_too_large |
| 2 wrong types | prompts, messages |
| 3 surrogates, NUL, broken UTF-8, a megabyte of one character | bodies_that_are_no_request, text_of_nul_…, a_megabyte_of_… |
| 4 token ids out of range | prompts, token_ids_beyond_the_vocabulary |
| 5 unknown models, unsupported fields | unknown_models_and_places, an_unsupported_field_… |
| 6 sampling out of range, and at its edge | values_out_of_range, fields_of_one_endpoint, values_at_the_edge_are_taken |
| 7 n, prompts × n, best_of | values_out_of_range, fields_of_one_endpoint |
| 8 stop texts | values_out_of_range, a_stop_of_ten_megabytes_…; streams: a_stop_is_never_seen_…, a_stop_that_the_prompt_ends_with_… |
| 9 biases and grammars that leave nothing | values_at_the_edge_…, a_bias_against_all_…, constraints_that_are_refused_in_time |
| 10 the context's end, the whole cache | lengths: prompts_at_the_end_of_the_context, what_the_whole_cache_cannot_hold_… |
| 11 more than the cache holds at once | lengths: the_text_is_transformers_… [preempted], a_cache_that_is_too_small_for_all_… |
| 12 clients that leave | faults: a_client_may_leave_at_any_moment, 200_random_disconnects_… |
| 13 a full queue | faults: a_full_queue_says_when_…; load: everyone_at_once_… |
| 14 signals | faults: sigterm_ends_32_streams_properly, signals_while_idle_and_twice |
| 15 failures within | faults: an_answer_s_own_failure_…, a_broken_engine_…; basics: failing_forwards_… |
| 16 readers that do not read | hostile: a_reader_that_reads_nothing_… |
| 17 idle connections, headers without end | faults: headers_that_are_too_large_or_never_end |
| 18 the same tokens by whatever way | lengths: the_text_is_transformers_…, a_seed_is_the_same_text_…; draws: tests/engine/test_sampler, test_speculate |
| 19 scores of prompts | lm_eval; openai: completions_with_logprobs |
| 20 streams | streams: characters_come_whole, usage_counts_…; basics: streams_add_up_to_the_whole |
| 21 calls at every cut | streams: calls_are_the_same_…; calls: streams_of_any_cut_…; tests/text/test_parse |
| 22 special tokens spelled | hostile: no_text_of_a_chat_…, no_name_…, no_prompt_becomes_a_special_token |
| 23 schemas and expressions that run away | constraints_that_are_refused_in_time, catastrophic_constraints_…; calls: a_schema_that_cannot_hold_a_call_… |
| 24 the key | hostile: every_route_asks_for_the_key, no_other_header_is_the_key; faults: signals_while_idle_… (logs) |
| 25 untrusted folders | hostile: a_stranger_s_folder_…, code_in_a_folder_…; tests/cli/test_malformed |
| 26 where it listens | hostile: it_listens_to_this_machine_alone |
| 27 labels of metrics | hostile: the_labels_of_the_metrics_… |
"""  # noqa: E501
