"""Cubes, balls, cones and cylinders on the floor of a room with four tinted walls, seen by pinhole cameras.

Units are metres: x and y on the floor, z up, the room's middle at the origin. Things stand apart and are equally wide,
so drawing them from the farthest to the nearest is exact. A wall that would hide the room is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from minilava.data.world import draw

SOLIDS = ("cube", "ball", "cone", "cylinder")
HEIGHTS = {"cube": 0.76, "ball": 0.96, "cone": 1.1, "cylinder": 1.0}
RADIUS = 0.48  # half a ball's width; half of a cube's diagonal is 0.54
HALF_CUBE = 0.38
ROOM = 2.3  # from the middle to a wall
WALL = 1.3  # height
NEAR = 0.1
BEYOND = (226, 230, 234)  # what is outside the room
FLOOR = (176, 166, 156)
WALLS = ((236, 208, 204), (206, 222, 240), (212, 234, 206), (240, 232, 200))  # at +x, +y, -x, -y
SIDES = 20  # of the polygons that stand for circles
ID_SIDE = 96  # pixels of the pictures that visibility is counted in, whatever size is drawn
OVERSAMPLE = 2


@dataclass(frozen=True)
class Solid:
    """turn: radians about the vertical, which shows for cubes alone."""

    color: str
    kind: str
    x: float
    y: float
    turn: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Camera:
    """A camera at (x, y, z) that looks at (to_x, to_y, to_z); zoom: focal length over half the picture's side."""

    x: float
    y: float
    z: float
    to_x: float
    to_y: float
    to_z: float
    zoom: float

    @cached_property
    def axes(self) -> np.ndarray:
        """Rows: right, down, forward."""
        f = np.array([self.to_x - self.x, self.to_y - self.y, self.to_z - self.z])
        f /= math.sqrt(f @ f)
        flat = math.hypot(f[0], f[1])
        right = np.array([f[1] / flat, -f[0] / flat, 0.0])
        down = np.array([f[0] * f[2] / flat, f[1] * f[2] / flat, -flat])
        return np.stack([right, down, f])

    def local(self, points: np.ndarray) -> np.ndarray:
        """Points in the camera's own axes: (right, down, depth)."""
        return (points - (self.x, self.y, self.z)) @ self.axes.T

    def project(self, points: np.ndarray) -> np.ndarray:
        """Places in the picture, (0, 0) its top left corner and (1, 1) the bottom right one; points are in front."""
        p = self.local(points)
        return 0.5 + 0.5 * self.zoom * p[:, :2] / p[:, 2:]

    def distance(self, solid: Solid) -> float:
        """On the floor."""
        return math.hypot(solid.x - self.x, solid.y - self.y)


@lru_cache
def mesh(kind: str) -> tuple[np.ndarray, tuple[tuple[int, ...], ...], np.ndarray, np.ndarray]:
    """(corners, faces as corner numbers, their outward normals, a point on each) of a solid at the origin."""
    height = HEIGHTS[kind]
    if kind == "cube":
        ring, radius = 4, HALF_CUBE * math.sqrt(2)
    else:
        ring, radius = SIDES, RADIUS
    angles = (np.arange(ring) + 0.5) * 2 * math.pi / ring
    base = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(ring)], 1)
    around = [(i, (i + 1) % ring) for i in range(ring)]
    if kind == "cone":
        corners = np.concatenate([base, [[0, 0, height]]])
        faces = tuple((i, j, ring) for i, j in around)
    else:
        corners = np.concatenate([base, base + (0, 0, height)])
        faces = (*((i, j, j + ring, i + ring) for i, j in around), tuple(range(ring, 2 * ring)))
    points = np.array([corners[f[0]] for f in faces])
    normals = np.array([np.cross(corners[f[1]] - corners[f[0]], corners[f[2]] - corners[f[0]]) for f in faces])
    return corners, faces, normals / np.linalg.norm(normals, axis=1, keepdims=True), points


def outlines(camera: Camera, solid: Solid) -> list[tuple[float, list[tuple[float, float]]]]:
    """Visible faces as (brightness, polygon in shares of the picture); a ball's silhouette is its one face."""
    if solid.kind == "ball":
        return [(1.0, _ball(camera, solid))]
    corners, faces, normals, points = mesh(solid.kind)
    c, s = math.cos(solid.turn), math.sin(solid.turn)
    spin = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    place = np.array([solid.x, solid.y, 0])
    normals = normals @ spin
    toward = np.array([camera.x, camera.y, camera.z]) - (points @ spin + place)
    seen = ((normals * toward).sum(1) > 0).tolist()
    light = _light(camera, normals).tolist()
    flat = [tuple(p) for p in camera.project(corners @ spin + place).tolist()]
    return [(light[i], [flat[j] for j in face]) for i, face in enumerate(faces) if seen[i]]


def _light(camera: Camera, normals: np.ndarray) -> np.ndarray:
    """Tops bright, sides darker towards the camera's right."""
    return 0.86 - 0.14 * (normals @ camera.axes[0]) + 0.2 * np.clip(normals[:, 2], 0, 1)


def _ball(camera: Camera, solid: Solid) -> list[tuple[float, float]]:
    """The silhouette: the circle in which rays touch the ball."""
    center = camera.local(np.array([[solid.x, solid.y, RADIUS]]))[0]
    far = math.sqrt(center @ center)
    axis = center / far
    u = np.cross(axis, (0.0, 1.0, 0.0))
    u /= math.sqrt(u @ u)
    v = np.cross(axis, u)
    sine = RADIUS / far
    angles = np.arange(SIDES + 4) * 2 * math.pi / (SIDES + 4)
    circle = axis * far * (1 - sine * sine) + RADIUS * math.sqrt(1 - sine * sine) * (
        np.outer(np.cos(angles), u) + np.outer(np.sin(angles), v)
    )
    return [tuple(p) for p in (0.5 + 0.5 * camera.zoom * circle[:, :2] / circle[:, 2:]).tolist()]


class View:
    """What one camera sees of a room with solids. shares: how much of each solid's silhouette shows, 0 to 1."""

    def __init__(self, camera: Camera, solids: Sequence[Solid]):
        self.camera, self.solids = camera, solids
        order = sorted(range(len(solids)), key=lambda i: -camera.distance(solids[i]))
        self.faces = {i: outlines(camera, solids[i]) for i in order}  # from the farthest to the nearest
        self.shares = self._shares()

    def draw(self, size: int) -> Image.Image:
        side = size * OVERSAMPLE
        picture = Image.new("RGB", (side, side), BEYOND)
        pen = ImageDraw.Draw(picture)
        for color, polygon in _room(self.camera):
            pen.polygon([(x * side, y * side) for x, y in polygon], color)
        for i, faces in self.faces.items():
            color = draw.COLORS[self.solids[i].color]
            for light, polygon in faces:
                pen.polygon([(x * side, y * side) for x, y in polygon], _shade(color, light))
            if self.solids[i].kind == "ball":
                _shine(pen, self.camera, self.solids[i], side)
        return picture.reduce(OVERSAMPLE)

    def _shares(self) -> list[float]:
        """Counted in a small picture of solids' numbers."""
        ids, areas = Image.new("L", (ID_SIDE, ID_SIDE)), {}
        pen = ImageDraw.Draw(ids)
        for i, faces in self.faces.items():
            areas[i] = sum(_area(polygon) for _, polygon in faces) * ID_SIDE**2
            for _, polygon in faces:
                pen.polygon([(x * ID_SIDE - 0.5, y * ID_SIDE - 0.5) for x, y in polygon], i + 1)
        counts = ids.histogram()
        return [min(counts[i + 1] / areas[i], 1.0) for i in range(len(self.solids))]


def _shade(color: tuple[int, int, int], light: float) -> tuple[int, ...]:
    """Below 1 towards black, above towards white."""
    if light <= 1:
        return tuple(round(c * light) for c in color)
    return tuple(round(c + (255 - c) * min(1.5 * (light - 1), 1)) for c in color)


def _shine(pen: ImageDraw.ImageDraw, camera: Camera, solid: Solid, side: int) -> None:
    """A bright spot that tells a ball from a disc."""
    ((x, y),) = camera.project(np.array([[solid.x, solid.y, RADIUS]])).tolist()
    r = 0.5 * camera.zoom * RADIUS / camera.distance(solid)
    x, y, spot = x - 0.4 * r, y - 0.4 * r, 0.22 * r
    box = [(x - spot) * side, (y - spot) * side, (x + spot) * side, (y + spot) * side]
    pen.ellipse(box, _shade(draw.COLORS[solid.color], 1.4))


@lru_cache
def _shell() -> tuple[tuple[tuple[int, int, int], np.ndarray], ...]:
    """(color, corners) of the floor and the walls."""
    r = ROOM
    floor = np.array([(r, r, 0), (-r, r, 0), (-r, -r, 0), (r, -r, 0)], float)
    walls = []
    for i, color in enumerate(WALLS):
        x, y = ((1, 0), (0, 1), (-1, 0), (0, -1))[i]
        ends = [(r * (x - s * y), r * (y + s * x)) for s in (1, -1)]
        (x0, y0), (x1, y1) = ends
        walls.append((color, np.array([(x0, y0, 0), (x1, y1, 0), (x1, y1, WALL), (x0, y0, WALL)], float)))
    return ((FLOOR, floor), *walls)


def _room(camera: Camera) -> list[tuple[tuple[int, int, int], list[tuple[float, float]]]]:
    """The floor and the walls whose inner side faces the camera."""
    beyond = (camera.x > ROOM, camera.y > ROOM, camera.x < -ROOM, camera.y < -ROOM)
    (color, floor), *walls = _shell()
    kept = [(color, floor)] + [w for w, hidden in zip(walls, beyond, strict=True) if not hidden]
    out = []
    for color, corners in kept:
        points = clip(camera.local(corners).tolist())
        if len(points) > 2:
            half = 0.5 * camera.zoom
            out.append((color, [(0.5 + half * x / z, 0.5 + half * y / z) for x, y, z in points]))
    return out


def clip(points: list) -> list:
    """A polygon's part in front of the camera (Sutherland-Hodgman against depth NEAR)."""
    out = []
    for p, q in zip(points, points[1:] + points[:1], strict=True):
        if p[2] >= NEAR:
            out.append(p)
        if (p[2] >= NEAR) != (q[2] >= NEAR):
            t = (NEAR - p[2]) / (q[2] - p[2])
            out.append([a + t * (b - a) for a, b in zip(p, q, strict=True)])
    return out


def _area(polygon: list[tuple[float, float]]) -> float:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(p[0] * q[1] - q[0] * p[1] for p, q in pairs)) / 2
