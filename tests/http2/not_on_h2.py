"""What the reference engine cannot be made to do, and why: these tests are for the compiled engine.

Each entry is a test that fails on the reference engine; one that passes is an error, so the list
cannot grow stale.
"""

_REPEATS = "h2 answers each further frame on a stream that was reset with RST_STREAM again (rows 31, 38)"
_OPEN = "h2 holds a stream above GOAWAY's last id open, and judges its frames (row 1)"

_INTERIM = "h2 has no state for a 1xx response on a closed stream, and ends the connection (row 41)"

# By the name of a test without the engine's; one with parameters has them in brackets.
NOT_ON_H2: dict[str, str] = {
    "test_each_frame_in_each_state[given up by us-DATA]": _REPEATS,
    "test_each_frame_in_each_state[given up by us-HEADERS]": _REPEATS,
    "test_each_frame_in_each_state[open, the body waits-DATA]": _REPEATS,
    "test_each_frame_in_each_state[half-closed (local)-DATA]": _REPEATS,
    "test_each_frame_in_each_state[interim response came-DATA]": _REPEATS,
    "test_each_frame_in_each_state[refused by GOAWAY-DATA]": _OPEN,
    "test_interim_responses_without_end": _INTERIM,
    "test_row_38_only_a_final_response_is_a_late_one": _INTERIM,
}
