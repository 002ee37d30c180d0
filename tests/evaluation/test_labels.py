"""Places of names: beside the point if that is free, else farther away, and inside the plot."""

import itertools

import numpy as np
import pytest

from fqs_jax.evaluation.labels import DISTANCES, Box, overlap, place_name

AREA = Box(0, 0, 400, 300)
SIZE = (60, 14)


def test_a_name_stands_right_of_a_point_with_nothing_around():
    box, is_near, is_free = place_name((100, 100), SIZE, AREA, [])
    assert box == (109, 93, 169, 107) and is_near and is_free
    box, *_ = place_name((100, 100), SIZE, AREA, [], scale=2)
    assert box == (118, 93, 178, 107)


@pytest.mark.parametrize("point", [(395, 150), (200, 295), (2, 2), (398, 2)])
def test_a_name_stays_inside(point):
    box, _, is_free = place_name(point, SIZE, AREA, [])
    assert is_free and 0 <= box.left and box.right <= 400 and 0 <= box.low and box.high <= 300


def test_names_of_points_that_coincide_do_not_overlap():
    taken = [Box(195, 145, 205, 155)]
    for _ in range(12):
        place = place_name((200, 150), SIZE, AREA, taken)
        assert place.is_free
        taken.append(place.box)
    assert all(overlap(one, other) < 1e-9 for one, other in itertools.combinations(taken, 2))


def test_without_room_the_place_covers_little_and_is_not_free():
    full = Box(150, 0, 400, 300)  # all places right of the point
    place = place_name((149, 150), SIZE, AREA, [full])
    assert place.is_free and place.box.right <= 150
    place = place_name((200, 150), SIZE, Box(180, 100, 230, 200), [])
    outside = 10 * 14  # the area is narrower than the name
    assert not place.is_free
    assert place.box.area - overlap(place.box, Box(180, 100, 230, 200)) == outside


def test_overlap_against_counted_cells():
    rng = np.random.default_rng(0)
    for _ in range(20):
        (a, b), (c, d) = (np.sort(rng.integers(0, 9, (2, 2)), axis=1) for _ in range(2))
        cells = [set(itertools.product(range(*x), range(*y))) for x, y in ((a, b), (c, d))]
        boxes = [Box(x[0], y[0], x[1], y[1]) for x, y in ((a, b), (c, d))]
        assert overlap(*boxes) == len(cells[0] & cells[1])
    assert DISTANCES == tuple(sorted(DISTANCES))  # the nearest place is tried first
