//! Whether the data of a JPEG image is all there.
//!
//! Decoders fill up what is missing with grey and say nothing. This goes through the entropy-coded data as they do (ITU-T T.81, annexes B, F and G), and keeps
//! no more of it than which coefficients are not zero, on which the length of a progressive refinement depends.

use std::io::Cursor;
use std::path::Path;

use image::ImageFormat;
use image::codecs::jpeg::{JpegDecoder, JpegEncoder};

use super::super::{Format, FormatKind, ImageWriter, IoError, Limits, Reader, Target, Writer};
use super::{Fault, Header, Image, begins_as, content_of, one_frame, opened, plausible};

/// JPEG, baseline and progressive.
pub(super) struct Jpeg;

impl Format for Jpeg {
    fn name(&self) -> &'static str {
        "jpg"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["jpg", "jpeg"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Image
    }

    fn matches(&self, head: &[u8]) -> bool {
        begins_as(head, ImageFormat::Jpeg)
    }

    fn limits(&self) -> Limits {
        Limits { channels: &[1, 3], side_px: 65_535, ..Limits::IMAGE }
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        opened(path, || {
            let content = content_of(path)?;
            check(&content)?;
            let header = Header::of(&mut JpegDecoder::new(Cursor::new(&content))?)?;
            // What is not gone through is left to the decoder; every block of 64 px takes a bit at least.
            plausible(header.decoded, header.px / 512, content.len() as u64)?;
            Ok(Image::new(path, &header, &[], move || one_frame(JpegDecoder::new(Cursor::new(content))?)))
        })
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        let quality = target.jpeg_quality.clamp(1, 100);
        Ok(Box::new(ImageWriter::new(target, move |pixels| {
            let mut encoded = Vec::new();
            let [height, width] = pixels.size;
            JpegEncoder::new_with_quality(&mut encoded, quality).encode(pixels.bytes, width, height, pixels.color)?;
            Ok(encoded)
        })))
    }
}

/// Scans that a decoder goes through, so that a small file does not keep it busy for hours.
const MOST_SCANS: usize = 100;

/// Checks that every block of an image has its data and that the image is ended.
///
/// # Errors
/// With what is missing or wrong.
pub(super) fn check(data: &[u8]) -> Result<(), Fault> {
    let mut walk = Walk { data, at: 0, frame: None, tables: Default::default(), restart_interval: 0, scans: 0 };
    if data.get(..2) != Some(&[0xFF, 0xD8]) {
        return Err(Fault::damaged("it does not begin as a JPEG image does"));
    }
    loop {
        let Some(marker) = next_marker(data, &mut walk.at) else { return Err(walk.ends_early()) };
        match marker {
            // Start of image, restarts and others without content.
            0xD8 | 0x01 | 0xD0..=0xD7 => continue,
            0xD9 => return walk.end(),
            _ => {}
        }
        let Some(segment) = walk.segment() else { return Err(Fault::incomplete("its header is cut off")) };
        match marker {
            0xC0..=0xC2 => walk.start_frame(segment, marker == 0xC2)?,
            0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                return Err(Fault::unsupported("a JPEG image with lossless, hierarchical or arithmetic coding"));
            }
            0xC4 => walk.define_tables(segment)?,
            0xDD => walk.restart_interval = segment.first_chunk().map_or(0, |&bytes| u16::from_be_bytes(bytes).into()),
            0xDA => walk.scan(segment)?,
            _ => {}
        }
    }
}

/// The next marker; bytes before it are skipped.
fn next_marker(data: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += data.get(*at..)?.iter().position(|&byte| byte == 0xFF)? + 1;
        let marker = *data.get(*at)?;
        if !matches!(marker, 0 | 0xFF) {
            *at += 1;
            return Some(marker);
        }
    }
}

struct Walk<'a> {
    data: &'a [u8],
    at: usize,
    frame: Option<Frame>,
    /// Of DC and AC coefficients.
    tables: [[Option<Table>; 4]; 2],
    /// Units between restarts; 0 without.
    restart_interval: usize,
    scans: usize,
}

struct Frame {
    /// Height and width.
    size: [usize; 2],
    is_progressive: bool,
    /// The largest sampling, vertical and horizontal.
    sampling: [usize; 2],
    components: Vec<Component>,
}

struct Component {
    id: u8,
    /// Blocks of a unit of all components: vertical, horizontal.
    sampling: [usize; 2],
    /// For each block whether its coefficients are not zero, in zigzag order; blocks that have none may be missing at the end.
    not_zero: Vec<u64>,
    is_begun: bool,
}

/// Part of the spectrum that a scan holds.
#[derive(Clone, Copy)]
struct Band {
    first: u32,
    last: u32,
    is_refinement: bool,
}

impl<'a> Walk<'a> {
    /// What follows a marker.
    fn segment(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_be_bytes(*self.data.get(self.at..)?.first_chunk()?));
        let segment = self.data.get(self.at + 2..self.at + length)?;
        self.at += length;
        Some(segment)
    }

    fn ends_early(&self) -> Fault {
        Fault::Incomplete(match &self.frame {
            None => "its header is cut off".to_owned(),
            Some(_) if self.scans == 0 => "its data ends before the first row".to_owned(),
            Some(frame) if frame.is_progressive => format!("its data ends after scan {}, and no end marker follows", self.scans),
            Some(_) => "its end marker is missing".to_owned(),
        })
    }

    fn end(&self) -> Result<(), Fault> {
        let Some(frame) = &self.frame else { return Err(Fault::damaged("it holds no image")) };
        match frame.components.iter().position(|component| !component.is_begun) {
            None => Ok(()),
            Some(_) if self.scans == 0 => Err(Fault::incomplete("its data ends before the first row")),
            Some(place) => Err(Fault::Incomplete(format!("its component {} of {} is missing", place + 1, frame.components.len()))),
        }
    }

    fn start_frame(&mut self, segment: &[u8], is_progressive: bool) -> Result<(), Fault> {
        let wrong = || Fault::damaged("its frame header is wrong");
        if self.frame.is_some() {
            return Err(Fault::damaged("it has two frame headers"));
        }
        let &[_, h0, h1, w0, w1, count, ref components @ ..] = segment else { return Err(wrong()) };
        let size = [[h0, h1], [w0, w1]].map(|bytes| usize::from(u16::from_be_bytes(bytes)));
        let components = components.as_chunks::<3>().0.get(..count.into()).ok_or_else(wrong)?;
        let components: Vec<_> = components
            .iter()
            .map(|&[id, sampling, _]| Component {
                id,
                sampling: [sampling & 15, sampling >> 4].map(usize::from),
                not_zero: Vec::new(),
                is_begun: false,
            })
            .collect();
        let is_right = components.iter().all(|component| component.sampling.iter().all(|side| (1..=4).contains(side)));
        if components.is_empty() || !is_right || size.contains(&0) {
            return Err(wrong());
        }
        let sampling = [0, 1].map(|axis| components.iter().map(|component| component.sampling[axis]).max().unwrap_or(1));
        self.frame = Some(Frame { size, is_progressive, sampling, components });
        Ok(())
    }

    fn define_tables(&mut self, mut segment: &[u8]) -> Result<(), Fault> {
        while let Some((&[kind, counts @ ..], rest)) = segment.split_first_chunk::<17>() {
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let table =
                rest.get(..total).and_then(|symbols| Table::new(counts, symbols)).ok_or_else(|| Fault::damaged("a Huffman table is wrong"))?;
            if let Some(place) = self.tables.get_mut(usize::from(kind >> 4)).and_then(|tables| tables.get_mut(usize::from(kind & 15))) {
                *place = Some(table);
            }
            segment = &rest[total..];
        }
        Ok(())
    }

    /// Goes through a scan.
    fn scan(&mut self, segment: &[u8]) -> Result<(), Fault> {
        let wrong = || Fault::damaged("a scan header is wrong");
        self.scans += 1;
        if self.scans > MOST_SCANS {
            return Err(Fault::damaged("it has more than 100 scans"));
        }
        let frame = self.frame.as_mut().ok_or_else(wrong)?;
        let (&count, rest) = segment.split_first().ok_or_else(wrong)?;
        let (parts, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(wrong)?;
        let &[first, last, approximation, ..] = rest else { return Err(wrong()) };
        let band = if frame.is_progressive {
            Band { first: first.into(), last: last.into(), is_refinement: approximation >> 4 > 0 }
        } else {
            Band { first: 0, last: 63, is_refinement: false }
        };
        let is_ac = frame.is_progressive && band.first > 0;
        if band.last > 63 || band.first > band.last || (frame.is_progressive && !is_ac && band.last > 0) || count == 0 || (is_ac && count > 1) {
            return Err(wrong());
        }
        let mut scanned = Vec::new();
        for &[id, tables] in parts.as_chunks::<2>().0 {
            let place = frame.components.iter().position(|component| component.id == id).ok_or_else(wrong)?;
            let [dc, ac] = [tables >> 4, tables & 15].map(|table| usize::from(table & 3));
            let [dc, ac] = [&self.tables[0][dc], &self.tables[1][ac]].map(Option::as_ref);
            let is_missing = (!is_ac && !band.is_refinement && dc.is_none()) || ((is_ac || !frame.is_progressive) && ac.is_none());
            if is_missing {
                return Err(Fault::unsupported("a JPEG image without Huffman tables of its own"));
            }
            if is_ac && !frame.components[place].is_begun {
                return Err(wrong());
            }
            frame.components[place].is_begun = true;
            scanned.push((place, dc, ac));
        }
        let bits = Bits { data: self.data, at: self.at, buffer: 0, count: 0 };
        let mut scan = Scan { bits, band, scanned, run: 0, restart_interval: self.restart_interval };
        let [height, width] = frame.size;
        let [tall, wide] = frame.sampling;
        // A component that comes alone has units of one block, and no more of them than it takes to cover the image.
        let [down, across] = if let [(place, ..)] = scan.scanned[..] { frame.components[place].sampling } else { [1, 1] };
        let units = [(height * down).div_ceil(8 * tall), (width * across).div_ceil(8 * wide)];
        for unit in 0..units[0] * units[1] {
            let [y, x] = [unit / units[1], unit % units[1]];
            scan.unit(frame, unit, [y, x]).map_err(|stop| {
                let row = (y * 8 * tall / down).min(height);
                let of_scan = if self.scans > 1 { format!(" of scan {}", self.scans) } else { String::new() };
                match stop {
                    Stop::End => Fault::Incomplete(format!("its data ends after row {row} of {height}{of_scan}")),
                    Stop::Wrong => Fault::Damaged(format!("its data makes no sense after row {row} of {height}{of_scan}")),
                }
            })?;
        }
        self.at = scan.bits.at;
        Ok(())
    }
}

struct Scan<'a> {
    bits: Bits<'a>,
    band: Band,
    /// Components, and their tables of DC and AC coefficients.
    scanned: Vec<(usize, Option<&'a Table>, Option<&'a Table>)>,
    /// Blocks, from the next one on, that have no more AC coefficients.
    run: u32,
    restart_interval: usize,
}

impl Scan<'_> {
    /// The blocks of all components of the scan at one place.
    fn unit(&mut self, frame: &mut Frame, unit: usize, [y, x]: [usize; 2]) -> Result<(), Stop> {
        if unit > 0 && self.restart_interval > 0 && unit.is_multiple_of(self.restart_interval) {
            self.run = 0;
            self.bits.restart((unit / self.restart_interval - 1) % 8)?;
        }
        for &(place, dc, ac) in &self.scanned {
            let component = &mut frame.components[place];
            let [v, h] = if self.scanned.len() == 1 { [1, 1] } else { component.sampling };
            let stride = frame.size[1].div_ceil(8 * frame.sampling[1]) * component.sampling[1];
            for block in 0..v * h {
                if !frame.is_progressive {
                    self.bits.sequential(dc, ac)?;
                } else if self.band.first > 0 {
                    let block = (y * v + block / h) * stride + x * h + block % h;
                    self.bits.band(self.band, ac, &mut self.run, &mut component.not_zero, block)?;
                } else if self.band.is_refinement {
                    self.bits.take(1)?;
                } else {
                    self.bits.difference(dc)?;
                }
            }
        }
        Ok(())
    }
}

/// For each 16 bits, how long the code is with which they begin (0: none), and its symbol.
struct Table(Vec<[u8; 2]>);

impl Table {
    fn new(counts: [u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut table = vec![[0, 0]; 1 << 16];
        let mut symbols = symbols.iter();
        let mut start = 0;
        for (length, count) in (1_u8..).zip(counts) {
            for &symbol in symbols.by_ref().take(count.into()) {
                let end = start + (1 << (16 - length));
                table.get_mut(start..end)?.fill([length, symbol]);
                start = end;
            }
        }
        Some(Self(table))
    }
}

/// Why data cannot be gone through.
enum Stop {
    /// A marker, or the end of the file, where data is expected.
    End,
    /// A code that does not exist.
    Wrong,
}

struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The last `count` bits are to come.
    buffer: u64,
    count: u32,
}

impl Bits<'_> {
    fn fill(&mut self) {
        while self.count <= 48 {
            let byte = match self.data.get(self.at..) {
                Some([0xFF, 0, ..]) => {
                    self.at += 1;
                    0xFF
                }
                Some([0xFF, ..] | []) | None => return,
                Some([byte, ..]) => *byte,
            };
            self.at += 1;
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    fn take(&mut self, bits: u32) -> Result<u32, Stop> {
        if self.count < bits {
            self.fill();
        }
        self.count = self.count.checked_sub(bits).ok_or(Stop::End)?;
        Ok((self.buffer >> self.count & ((1 << bits) - 1)) as u32)
    }

    fn symbol(&mut self, table: Option<&Table>) -> Result<u32, Stop> {
        if self.count < 16 {
            self.fill();
        }
        let next = if self.count < 16 { self.buffer << (16 - self.count) } else { self.buffer >> (self.count - 16) };
        let [length, symbol] = table.ok_or(Stop::Wrong)?.0[(next & 0xFFFF) as usize];
        if length == 0 {
            return Err(if self.count < 16 { Stop::End } else { Stop::Wrong });
        }
        self.count = self.count.checked_sub(length.into()).ok_or(Stop::End)?;
        Ok(symbol.into())
    }

    /// The marker that ends an interval.
    fn restart(&mut self, number: usize) -> Result<(), Stop> {
        self.count = 0;
        match next_marker(self.data, &mut self.at) {
            Some(marker @ 0xD0..=0xD7) if usize::from(marker - 0xD0) == number => Ok(()),
            Some(0xD0..=0xD7) => Err(Stop::Wrong),
            _ => Err(Stop::End),
        }
    }

    /// A DC coefficient.
    fn difference(&mut self, table: Option<&Table>) -> Result<(), Stop> {
        let size = self.symbol(table)?;
        if size > 16 {
            return Err(Stop::Wrong);
        }
        self.take(size).map(drop)
    }

    /// All coefficients of a block.
    fn sequential(&mut self, dc: Option<&Table>, ac: Option<&Table>) -> Result<(), Stop> {
        self.difference(dc)?;
        let mut k = 1;
        while k < 64 {
            let symbol = self.symbol(ac)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => k += 16,
                (_, 0) => break,
                (zeros, size) => {
                    k += zeros + 1;
                    self.take(size)?;
                }
            }
        }
        if k > 64 { Err(Stop::Wrong) } else { Ok(()) }
    }

    /// The AC coefficients of a block that a progressive scan holds. `run`: blocks, from this one on, that have no more.
    fn band(&mut self, band: Band, table: Option<&Table>, run: &mut u32, not_zero: &mut Vec<u64>, place: usize) -> Result<(), Stop> {
        let mut k = band.first;
        let mut mask = not_zero.get(place).copied().unwrap_or(0);
        let before = mask;
        while *run == 0 && k <= band.last {
            let symbol = self.symbol(table)?;
            let (mut zeros, size) = (symbol >> 4, symbol & 15);
            if size == 0 && zeros < 15 {
                *run = (1 << zeros) + self.take(zeros)?;
                break;
            }
            if !band.is_refinement {
                k += zeros;
                if k > 63 {
                    return Err(Stop::Wrong);
                }
                self.take(size)?;
                mask |= u64::from(size > 0) << k;
                k += 1;
                continue;
            }
            if size > 1 {
                return Err(Stop::Wrong);
            }
            self.take(size)?;
            // One bit per nonzero coefficient, until the run of zeros is skipped.
            while k <= band.last {
                if before >> k & 1 == 1 {
                    self.take(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if size > 0 && k <= band.last {
                mask |= 1 << k;
            }
            k += 1;
        }
        if *run > 0 {
            if band.is_refinement && k <= band.last {
                let rest = before >> k & (u64::MAX >> (63 - (band.last - k)));
                for _ in 0..rest.count_ones() {
                    self.take(1)?;
                }
            }
            *run -= 1;
        }
        if mask != before {
            if not_zero.len() <= place {
                not_zero.resize(place + 1, 0);
            }
            not_zero[place] = mask;
        }
        Ok(())
    }
}
