"""Objects that tiles report twice or in parts."""

import geopandas
import numpy as np
import pytest
from shapely import Point, Polygon, affinity, box

from rsmamba.errors import ConfigError, LabelError
from rsmamba.gis.instances import merge_instances

LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 180, 100)  # 20 in common
BESIDE = (100, 0, 200, 100)  # touches the left one


def layer(*rows):
    """Instances of (score, class, geometry)."""
    scores, classes, shapes = zip(*rows, strict=True) if rows else ((), (), ())
    return geopandas.GeoDataFrame(
        {"score": list(scores), "class": list(classes)}, geometry=list(shapes), crs="EPSG:32633"
    )


def test_an_object_cut_by_a_tile_border_and_reported_twice_is_one():
    merged = merge_instances(
        layer((0.7, "ship", box(60, 40, 100, 50)), (0.9, "ship", box(80, 40, 130, 50))),
        tiles=[LEFT, RIGHT],
    )
    assert merged.geometry[0].equals(box(60, 40, 130, 50)) and len(merged) == 1
    assert merged["score"].tolist() == [0.9] and merged["reports"].tolist() == [2]
    assert merged.crs.to_epsg() == 32633


def test_two_near_objects_stay_two():
    near = layer((0.7, "ship", box(60, 40, 94, 50)), (0.9, "ship", box(95, 40, 130, 50)))
    assert len(merge_instances(near, tiles=[LEFT, RIGHT])) == 2
    # the boxes overlap a little, and each tile sees both
    boxes = box(60, 40, 92, 50), box(88, 40, 130, 50)
    both = layer(*((0.9, "ship", b) for b in boxes), *((0.8, "ship", b) for b in boxes))
    merged = merge_instances(both, tiles=[LEFT, LEFT, RIGHT, RIGHT])
    assert merged["reports"].tolist() == [2, 2]
    assert {shape.bounds for shape in merged.geometry} == {b.bounds for b in boxes}


def test_one_above_the_other_across_a_border_stay_two():
    ships = layer((0.9, "ship", box(60, 40, 100, 50)), (0.9, "ship", box(80, 50, 130, 60)))
    assert len(merge_instances(ships, tiles=[LEFT, RIGHT])) == 2


def test_without_overlap_parts_are_joined_along_the_border():
    parts = layer((0.9, "field", box(60, 40, 100, 60)), (0.8, "field", box(100, 41, 130, 60)))
    merged = merge_instances(parts, tiles=[LEFT, BESIDE])
    assert merged.geometry[0].equals(box(60, 40, 130, 60))
    apart = layer((0.9, "field", box(60, 40, 100, 60)), (0.8, "field", box(100, 58, 130, 80)))
    assert len(merge_instances(apart, tiles=[LEFT, BESIDE])) == 2


def test_borders_may_differ_by_rounding():
    a = layer((0.9, "field", box(60, 40, 100 - 1e-9, 60)), (0.8, "field", box(100, 40, 130, 60)))
    tiles = [(0, 0, 100 - 1e-9, 100), BESIDE]
    touching = a.set_geometry([a.geometry[0], a.geometry[1].union(box(100 - 1e-9, 40, 101, 60))])
    assert len(merge_instances(touching, tiles=tiles)) == 1


def test_an_object_over_four_tiles_is_one():
    disc = Point(90, 90).buffer(60)
    tiles = [(x, y, x + 100, y + 100) for x in (0, 80) for y in (0, 80)]
    parts = layer(*((0.5 + 0.1 * i, "pond", disc & box(*tile)) for i, tile in enumerate(tiles)))
    merged = merge_instances(parts, tiles=tiles)
    assert merged["reports"].tolist() == [4] and merged["score"].tolist() == [0.8]
    assert merged.area[0] == pytest.approx((disc & box(0, 0, 180, 180)).area)


def test_a_long_object_over_many_tiles_is_one():
    tiles = [(80 * i, 0, 80 * i + 100, 100) for i in range(9)]
    road = box(30, 40, 700, 45)
    parts = layer(*((0.9, "road", road & box(*tile)) for tile in tiles))
    merged = merge_instances(parts, tiles=tiles)
    assert merged.geometry[0].equals(road) and merged["reports"].tolist() == [9]


def test_a_whole_and_the_cut_corner_of_its_box_are_one():
    """A slanted ship: the box around what the right tile sees of it is far smaller."""
    whole, part = box(20, 20, 95, 95), box(80, 80, 95, 95)
    ships = layer((0.6, "ship", whole), (0.9, "ship", part))
    merged = merge_instances(ships, tiles=[LEFT, RIGHT])
    assert merged.geometry[0].equals(whole) and merged["score"].tolist() == [0.9]
    inner = layer((0.6, "ship", whole), (0.9, "ship", box(84, 60, 90, 66)))
    assert len(merge_instances(inner, tiles=[LEFT, RIGHT])) == 2  # not cut: another, smaller ship


def test_a_part_goes_to_the_object_that_fits_best():
    large, small, part = box(20, 20, 95, 95), box(70, 84, 95, 95), box(80, 84, 95, 95)
    ships = layer((0.6, "ship", large), (0.7, "ship", small), (0.9, "ship", part))
    merged = merge_instances(ships, tiles=[LEFT, LEFT, RIGHT])
    assert len(merged) == 2 and merged["reports"].tolist() == [2, 1]
    assert merged.geometry[0].equals(small)


def test_suppression_is_by_class_and_keeps_the_best():
    square = box(0, 0, 10, 10)
    merged = merge_instances(
        layer(
            (0.5, "a", box(1, 0, 11, 10)),
            (0.9, "a", square),
            (0.7, "b", square),
            (0.6, "a", box(4, 0, 14, 10)),  # a third of it in common: another object
        )
    )
    assert merged["score"].tolist() == [0.9, 0.7, 0.6]
    assert merged["class"].tolist() == ["a", "b", "a"]
    assert merged["reports"].tolist() == [2, 1, 1]
    assert len(merge_instances(layer((0.5, "a", square), (0.9, "a", square)), iou=1.0)) == 1


def test_what_is_taken_out_takes_nothing_out():
    steps = layer(*((0.9 - 0.1 * i, "a", box(3 * i, 0, 3 * i + 10, 10)) for i in range(3)))
    merged = merge_instances(steps)  # neighbours overlap by 7 / 13, the first and last by 4 / 16
    assert [shape.bounds[0] for shape in merged.geometry] == [0, 6]
    assert merged["reports"].tolist() == [2, 1]


def test_two_instances_of_one_tile_are_never_parts_of_one_object():
    inner = layer((0.9, "a", box(60, 40, 100, 60)), (0.8, "a", box(80, 42, 100, 48)))
    assert len(merge_instances(inner, tiles=[LEFT, LEFT])) == 2
    assert len(merge_instances(inner, tiles=[LEFT, BESIDE])) == 2


def test_duplicates_of_one_tile_are_not_parts_but_suppressed():
    parts = layer((0.9, "a", box(60, 40, 100, 60)), (0.8, "a", box(60, 40, 100, 58)))
    merged = merge_instances(parts, tiles=[LEFT, LEFT])
    assert merged.geometry[0].equals(box(60, 40, 100, 60))


def test_polygons_are_united_and_columns_of_the_best_kept():
    disc = Point(90, 50).buffer(30)
    parts = layer((0.9, 3, disc & box(*LEFT)), (0.8, 3, disc & box(*RIGHT)))
    parts["tile"] = ["left", "right"]
    merged = merge_instances(parts, tiles=[LEFT, RIGHT])
    assert merged["tile"].tolist() == ["left"]
    assert merged.geometry[0].symmetric_difference(disc).area < 1e-6


def test_scattered_objects_over_a_grid_of_tiles_come_back_as_they_were():
    rng = np.random.default_rng(5)
    cells = [(x, y) for x in range(0, 1000, 50) for y in range(0, 1000, 50)]
    objects = [
        affinity.rotate(box(x + 5, y + 5, x + 5 + w, y + 5 + h), 10 * rng.random())
        for (x, y), (w, h) in zip(cells, rng.uniform(10, 36, (len(cells), 2)), strict=True)
    ]
    rows, tiles = [], []
    for x in range(0, 1000, 200):
        for y in range(0, 1000, 200):
            tile = (x - 20, y - 20, x + 220, y + 220)
            for number, shape in enumerate(objects):
                seen = shape & box(*tile)
                if seen.area > 0:
                    rows.append((float(rng.random()), number % 3, seen))
                    tiles.append(tile)
    assert len(rows) > len(objects) + 100
    merged = merge_instances(layer(*rows), tiles=tiles)
    assert len(merged) == len(objects)
    assert merged["reports"].sum() == len(rows)
    assert merged.area.sum() == pytest.approx(sum(shape.area for shape in objects))
    assert merged["score"].is_monotonic_decreasing


def test_invalid_and_empty_geometries_are_handled():
    bow = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    merged = merge_instances(
        layer((0.9, "a", bow), (0.8, "a", Polygon()), (0.7, "a", None), (0.6, "a", box(1, 1, 1, 1)))
    )
    assert len(merged) == 1 and merged.is_valid.all()
    for tiles in (None, []):
        nothing = merge_instances(layer(), tiles=tiles)
        assert len(nothing) == 0 and "reports" in nothing and nothing.crs.to_epsg() == 32633


def test_bad_input_is_named():
    good = layer((0.9, "a", box(0, 0, 1, 1)))
    for iou in (0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="iou"):
            merge_instances(good, iou=iou)
    with pytest.raises(ConfigError, match="2 tiles for 1 instances"):
        merge_instances(good, tiles=[LEFT, LEFT])
    with pytest.raises(LabelError, match="no column 'confidence'; they have score, class"):
        merge_instances(good, score="confidence")
    with pytest.raises(LabelError, match="1 instances have no 'score'"):
        merge_instances(good.assign(score=[None]))
    with pytest.raises(LabelError, match="must hold numbers"):
        merge_instances(good.assign(score=["high"]))
    with pytest.raises(LabelError, match="not Point"):
        merge_instances(good.set_geometry([Point(0, 0)], crs=good.crs))
