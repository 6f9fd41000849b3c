use std::fmt;
use std::str::FromStr;

use image::DynamicImage;
use serde::{Deserialize, Serialize};

/// The colour behind the transparent px of images and clips, for models without an alpha channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Background {
    /// None: alpha is dropped and the stored colours are kept, as PIL's `convert("RGB")` and so diffusers' `load_image` do.
    #[default]
    None,
    /// Red, green and blue.
    Color([u8; 3]),
}

impl FromStr for Background {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let color = match text {
            "none" => return Ok(Self::None),
            "black" => Some([0; 3]),
            "white" => Some([u8::MAX; 3]),
            _ => text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).and_then(
                |digits| {
                    let [_, red, green, blue] = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
                    Some([red, green, blue])
                },
            ),
        };
        color.map(Self::Color).ok_or_else(|| format!("`{text}` is no background; write none, black, white or a colour as #rrggbb"))
    }
}

impl TryFrom<String> for Background {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Background> for String {
    fn from(background: Background) -> Self {
        background.to_string()
    }
}

impl fmt::Display for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Color([0, 0, 0]) => f.write_str("black"),
            Self::Color([255, 255, 255]) => f.write_str("white"),
            Self::Color([red, green, blue]) => write!(f, "#{red:02x}{green:02x}{blue:02x}"),
        }
    }
}

/// Whether there are px that are not opaque.
pub(super) fn is_transparent(image: &DynamicImage) -> bool {
    match image {
        DynamicImage::ImageLumaA8(image) => image.pixels().any(|pixel| pixel.0[1] < u8::MAX),
        DynamicImage::ImageRgba8(image) => image.pixels().any(|pixel| pixel.0[3] < u8::MAX),
        DynamicImage::ImageLumaA16(image) => image.pixels().any(|pixel| pixel.0[1] < u16::MAX),
        DynamicImage::ImageRgba16(image) => image.pixels().any(|pixel| pixel.0[3] < u16::MAX),
        _ => false,
    }
}

/// An image laid over a colour, by the values that are stored.
pub(super) fn laid_over(image: DynamicImage, color: [u8; 3]) -> DynamicImage {
    let mix = |value: u16, below: u16, alpha: u16, largest: u16| {
        let [value, below, alpha, largest] = [value, below, alpha, largest].map(u64::from);
        ((value * alpha + below * (largest - alpha) + largest / 2) / largest) as u16
    };
    if matches!(image, DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgba16(_)) {
        let mut image = image.into_rgba16();
        for pixel in image.pixels_mut() {
            let [red, green, blue, alpha] = pixel.0;
            let [r, g, b] = color.map(|value| u16::from(value) * 257);
            let mixed = |value, below| mix(value, below, alpha, u16::MAX);
            pixel.0 = [mixed(red, r), mixed(green, g), mixed(blue, b), u16::MAX];
        }
        return DynamicImage::ImageRgba16(image);
    }
    let mut image = image.into_rgba8();
    for pixel in image.pixels_mut() {
        let [red, green, blue, alpha] = pixel.0;
        let mixed = |value: u8, below: u8| mix(value.into(), below.into(), alpha.into(), u8::MAX.into()) as u8;
        pixel.0 = [mixed(red, color[0]), mixed(green, color[1]), mixed(blue, color[2]), u8::MAX];
    }
    DynamicImage::ImageRgba8(image)
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, LumaA, Rgba, RgbaImage};

    use super::*;

    #[test]
    fn colours_are_read_and_written() {
        for (text, background) in [
            ("none", Background::None),
            ("black", Background::Color([0; 3])),
            ("white", Background::Color([255; 3])),
            ("#0a80ff", Background::Color([10, 128, 255])),
        ] {
            assert_eq!((text.parse(), background.to_string()), (Ok(background), text.to_owned()));
        }
        for wrong in ["", "#12345", "#1234567", "#12345g", "#+12345", "red", "White"] {
            assert!(wrong.parse::<Background>().unwrap_err().contains("#rrggbb"), "{wrong}");
        }
    }

    #[test]
    fn alpha_is_the_share_of_the_image() {
        let image = RgbaImage::from_pixel(1, 1, Rgba([200, 100, 0, 51]));
        let over = laid_over(DynamicImage::ImageRgba8(image), [0, 255, 10]);
        assert_eq!(over.into_rgb8().get_pixel(0, 0).0, [40, 224, 8]);
        let grey = DynamicImage::ImageLumaA8(GrayAlphaImage::from_pixel(1, 1, LumaA([255, 0])));
        assert!(is_transparent(&grey) && !is_transparent(&laid_over(grey.clone(), [1, 2, 3])));
        assert_eq!(laid_over(grey, [1, 2, 3]).into_rgb8().get_pixel(0, 0).0, [1, 2, 3]);
        let deep = image::ImageBuffer::from_pixel(1, 1, Rgba([65535_u16, 0, 1000, 32768]));
        let over = laid_over(DynamicImage::ImageRgba16(deep), [0, 255, 0]).into_rgb16();
        assert_eq!(over.get_pixel(0, 0).0, [32768, 32767, 500]);
    }
}
