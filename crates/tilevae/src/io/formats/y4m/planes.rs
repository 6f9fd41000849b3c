use image::{DynamicImage, ImageBuffer};
use yuv::{YuvPlanarImage, YuvRange, YuvStandardMatrix, i416_to_rgb16};

use super::super::video::Matrix;
use super::header::Header;

pub(super) fn standard(matrix: Matrix) -> YuvStandardMatrix {
    match matrix {
        Matrix::Bt601 => YuvStandardMatrix::Bt601,
        Matrix::Bt709 => YuvStandardMatrix::Bt709,
    }
}

/// A frame in RGB: grey where it has no colour, with alpha where it has that, in 16 bits where it has more than 8.
pub(super) fn image(header: &Header, frame: &[u8]) -> Option<DynamicImage> {
    let (width, height) = (header.width, header.height);
    let [luma_bytes, colour_bytes, alpha_bytes] = header.plane_bytes()?;
    let (luma, rest) = frame.split_at_checked(luma_bytes)?;
    let (u, rest) = rest.split_at_checked(colour_bytes)?;
    let (v, rest) = rest.split_at_checked(colour_bytes)?;
    let alpha = rest.get(..alpha_bytes)?;
    let range = if header.is_full_range { YuvRange::Full } else { YuvRange::Limited };
    let matrix = standard(Matrix::of([height, width]));
    let channels = match (header.has_colour, header.has_alpha) {
        (false, _) => 1,
        (true, false) => 3,
        (true, true) => 4,
    };
    let is_deep = header.depth > 8;
    let (mut eight, mut sixteen) = (Vec::new(), Vec::new());
    let values = width.checked_mul(height)?.checked_mul(channels)?;
    if is_deep {
        sixteen.reserve_exact(values);
    } else {
        eight.reserve_exact(values);
    }
    let neutral = vec![0x8000; if header.has_colour { 0 } else { width }];
    let mut rows = Rows::new(header, [u, v]);
    let (mut y_row, mut rgb) = (Vec::with_capacity(width), vec![0_u16; 3 * width]);
    for y in 0..height {
        header.row(luma, y, width, false, &mut y_row);
        let [u_row, v_row] = if header.has_colour { rows.at(y) } else { [&neutral[..]; 2] };
        let stride = width as u32;
        let planes = YuvPlanarImage {
            y_plane: &y_row,
            y_stride: stride,
            u_plane: u_row,
            u_stride: stride,
            v_plane: v_row,
            v_stride: stride,
            width: stride,
            height: 1,
        };
        i416_to_rgb16(&planes, &mut rgb, 3 * stride, range, matrix).ok()?;
        let row_alpha = alpha.get(y * width..(y + 1) * width);
        for (x, pixel) in rgb.as_chunks::<3>().0.iter().enumerate() {
            let shown = &pixel[..channels.min(3)];
            if is_deep {
                sixteen.extend_from_slice(shown);
            } else {
                eight.extend(shown.iter().map(|&value| ((u32::from(value) * 255 + 32_767) / 65_535) as u8));
                eight.extend(row_alpha.map(|row| row[x]));
            }
        }
    }
    let [w, h] = [width, height].map(|side| u32::try_from(side).ok());
    let (w, h) = (w?, h?);
    Some(match (channels, is_deep) {
        (1, false) => DynamicImage::ImageLuma8(ImageBuffer::from_raw(w, h, eight)?),
        (1, true) => DynamicImage::ImageLuma16(ImageBuffer::from_raw(w, h, sixteen)?),
        (3, false) => DynamicImage::ImageRgb8(ImageBuffer::from_raw(w, h, eight)?),
        (3, true) => DynamicImage::ImageRgb16(ImageBuffer::from_raw(w, h, sixteen)?),
        _ => DynamicImage::ImageRgba8(ImageBuffer::from_raw(w, h, eight)?),
    })
}

/// Planes of colour, interpolated to a value for each px, row by row.
struct Rows<'a> {
    header: &'a Header,
    planes: [&'a [u8]; 2],
    /// For each px of a row, the values on both sides and the share of the second.
    columns: Vec<([usize; 2], u32)>,
    around: [Vec<u16>; 2],
    interpolated: [Vec<u16>; 2],
}

impl<'a> Rows<'a> {
    fn new(header: &'a Header, planes: [&'a [u8]; 2]) -> Self {
        let [_, width] = header.colour_size();
        let columns = (0..if header.has_colour { header.width } else { 0 }).map(|x| header.siting[1].around(x, width)).collect();
        Self { header, planes, columns, around: [const { Vec::new() }; 2], interpolated: [const { Vec::new() }; 2] }
    }

    fn at(&mut self, y: usize) -> [&[u16]; 2] {
        let [height, width] = self.header.colour_size();
        let (lines, down) = self.header.siting[0].around(y, height);
        let [down_unit, right_unit] = self.header.siting.map(|siting| 2 * siting.px as u32);
        let unit = down_unit * right_unit;
        for (plane, row) in self.planes.iter().zip(&mut self.interpolated) {
            for (line, values) in lines.into_iter().zip(&mut self.around) {
                self.header.row(plane, line, width, true, values);
            }
            let [above, below] = &self.around;
            let column = |x: usize| u32::from(above[x]) * (down_unit - down) + u32::from(below[x]) * down;
            row.clear();
            row.extend(
                self.columns
                    .iter()
                    .map(|&([left, right], share)| ((column(left) * (right_unit - share) + column(right) * share + unit / 2) / unit) as u16),
            );
        }
        self.interpolated.each_ref().map(Vec::as_slice)
    }
}
