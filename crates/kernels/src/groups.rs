//! Groups of tiles, the unit of work of a convolution and the partition over which moments are first computed.

/// Tiles (of one px or more) in a group: the columns of one matrix product.
pub(crate) const TILES: usize = 8;

/// Eight neighbouring tiles of an output: 2, 4 or 8 in a row, and 4, 2 or 1 rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileGroup {
    /// Row of its first tile, in tiles.
    pub(crate) row: usize,
    /// Column of its first tile, in tiles.
    pub(crate) column: usize,
    /// Tiles in a row.
    pub(crate) across: usize,
    /// Position in the list that goes down each band of columns.
    pub(crate) index: usize,
}

impl TileGroup {
    /// Rows of tiles.
    pub(crate) fn down(self) -> usize {
        TILES / self.across
    }

    /// Row and column of a tile.
    #[inline(always)]
    pub(crate) fn tile(self, tile: usize) -> [usize; 2] {
        [self.row + tile / self.across, self.column + tile % self.across]
    }

    /// Number of px within the image, for tiles of 4x4 px.
    pub(crate) fn px(self, [height, width]: [usize; 2]) -> usize {
        (4 * self.down()).min(height - 4 * self.row) * (4 * self.across).min(width - 4 * self.column)
    }
}

/// Divides an output of a height and width into groups of tiles of `SIDE`x`SIDE` px. With `down` the order is down each band of columns, so that consecutive
/// groups share rows of the input; else it is along the rows.
pub(crate) fn tile_groups<const SIDE: usize>([height, width]: [usize; 2], down: bool) -> Vec<TileGroup> {
    let [rows, columns] = [height.div_ceil(SIDE), width.div_ceil(SIDE)];
    let mut groups = Vec::new();
    let mut column = 0;
    while column < columns {
        let across = match columns - column {
            0..=2 => 2,
            3..=6 => 4,
            _ => 8,
        };
        for row in (0..rows).step_by(TILES / across) {
            groups.push(TileGroup { row, column, across, index: groups.len() });
        }
        column += across;
    }
    if !down {
        groups.sort_by_key(|group| (TILES - group.across, group.row));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_every_px_once() {
        for height in 0..20 {
            for width in 0..70 {
                for down in [false, true] {
                    let groups = tile_groups::<4>([height, width], down);
                    let mut covered = vec![0; height * width];
                    let mut px = 0;
                    for group in &groups {
                        px += group.px([height, width]);
                        for tile in 0..TILES {
                            let [top, left] = group.tile(tile).map(|at| 4 * at);
                            for y in top..(top + 4).min(height) {
                                for x in left..(left + 4).min(width) {
                                    covered[y * width + x] += 1;
                                }
                            }
                        }
                    }
                    assert!(covered.iter().all(|&times| times == 1) && px == height * width, "{height} {width} {down}");
                    let mut indices: Vec<usize> = groups.iter().map(|group| group.index).collect();
                    indices.sort_unstable();
                    assert!(indices.into_iter().eq(0..groups.len()));
                }
            }
        }
    }
}
