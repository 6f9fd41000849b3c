use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tiling::{HostTensor, Region, TileSource};

use super::super::super::{Clip, format_of};
use super::*;

/// A shell that plays ffmpeg, by a script that finds ffmpeg's arguments in `$*`.
#[cfg(unix)]
fn playing(script: &str) -> Program {
    let arguments = ["-c", script, "ffmpeg"].map(OsString::from).to_vec();
    Program { path: "/bin/sh".into(), arguments, patience: Duration::from_secs(20) }
}

/// What precedes the frames of two px: they come at 10 a second, and there are `$frames`.
#[cfg(unix)]
const PREAMBLE: &str = r#"
complain() { echo "[h264 @ 0x1] [error] $1" >&2; }
echo "[info] Input #0, matroska,webm, from 'x':" >&2
echo "[info]   Duration: 00:00:00.30, start: 0.000000, bitrate: 61 kb/s" >&2
echo "[info]   Stream #0:0: Video: h264 (High), yuv420p(tv, progressive), 2x1, 10 fps, 10 tbr, 1k tbn" >&2
case "$*" in
*framecrc*)
    printf '#tb 0: 1/1000\n0, 0, 0, 100, 9, 0x0\n0, 100, 100, 100, 9, 0x0\n0, 200, 200, 100, 9, 0x0\n'
    exit;;
*yuv4mpegpipe*) printf 'YUV4MPEG2 W2 H1 F10:1 Ip\nFRAME\n12345678'; exit;;
esac
"#;

#[cfg(unix)]
const FRAME: &str = "printf 'P6 2 1 255\\n123456'\n";

/// Writes 200 KiB to standard error, more than a pipe holds.
#[cfg(unix)]
const LOUD: &str = "i=0; while [ $i -lt 2000 ]; do echo '[swscaler @ 0x1] [error] 0123456789012345678901234567890123456789012345678901234567890123456789' >&2; i=$((i+1)); done\n";

#[cfg(unix)]
fn read_by(program: &Program) -> Result<usize, IoError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mkv");
    std::fs::write(&path, "what the shell does not look at").unwrap();
    let stream = Stream::probe(program.clone(), &path)?;
    assert_eq!(stream.fps, Some(Fps::new(10, 1).unwrap()).filter(|_| stream.overview.frames > 0));
    Box::new(stream).frames()?.collect::<Result<Vec<_>, _>>().map(|frames| frames.len())
}

/// Writes frames of 2x2 px; what lies in the folder afterwards, too.
#[cfg(unix)]
fn write_by(program: &Program, frames: usize) -> (Result<(), IoError>, Vec<OsString>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mkv");
    let written = FileWriter::new(program, &Target::new(&path, [1, 3, 1, 2, 2])).and_then(|writer| {
        let mut writer: Box<dyn FrameWriter> = Box::new(writer);
        (0..frames).try_for_each(|_| writer.write(&[9; 12]))?;
        writer.finish()
    });
    (written, std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect())
}

#[cfg(unix)]
#[test]
fn complaints_without_end_block_nothing() {
    let begun = Instant::now();
    let program = playing(&[PREAMBLE, LOUD, FRAME, LOUD, FRAME, FRAME].concat());
    assert_eq!(read_by(&program).unwrap(), 3);
    // One line without an end, and no text.
    let program = playing(&[PREAMBLE, FRAME, FRAME, "head -c 300000 /dev/zero >&2\n", FRAME].concat());
    assert_eq!(read_by(&program).unwrap(), 3);
    let quiet = "cat >/dev/null; head -c 300000 /dev/zero >&2";
    let (written, files) = write_by(&playing(quiet), 2000);
    assert!(written.is_ok() && files == ["clip.mkv"], "{written:?} {files:?}");
    let (written, files) = write_by(&playing(&[LOUD, "cat >/dev/null\n"].concat()), 2000);
    assert!(matches!(&written, Err(IoError::Ffmpeg { message, .. }) if message.contains("and 1999 more")) && files.is_empty(), "{written:?}");
    assert!(begun.elapsed() < Duration::from_mins(1));
}

#[cfg(unix)]
#[test]
fn missing_and_damaged_frames_are_errors_and_harmless_complaints_are_not() {
    let rest = [FRAME, FRAME].concat();
    let read = |script: &str| read_by(&playing(&[PREAMBLE, script].concat())).map_err(|error| error.to_string());
    let all = [&rest[..], FRAME].concat();
    for harmless in [
        "complain 'mmco: unref short failure'",
        "echo '[image2pipe @ 0x1] [error] Application provided invalid, non monotonically increasing dts' >&2",
        "echo '[mp3float @ 0x1] [error] Header missing' >&2",
        "echo '[h264 @ 0x1] [warning] corrupt decoded frame' >&2",
        "echo '[matroska,webm @ 0x1] [error] File ended prematurely' >&2",
    ] {
        assert_eq!(read(&[&all[..], harmless].concat()), Ok(3), "{harmless}");
    }
    for (script, came, fragment) in [
        ("echo '[matroska,webm @ 0x1] [error] File ended prematurely at pos. 7' >&2", &rest, "2 of 3 frames"),
        ("echo '[in#0/matroska,webm @ 0x1] [error] File ended prematurely at pos. 7' >&2", &rest, "ended prematurely at pos. 7"),
        ("complain 'Invalid NAL unit size'", &all, "Invalid NAL unit size"),
        ("echo '[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] [error] Error submitting packet' >&2", &all, "Error submitting packet"),
        ("echo '[in#0/avi @ 0x1] [warning] Packet corrupt (stream = 0, dts = 7).' >&2", &all, "Packet corrupt"),
        ("echo '[error] Error while decoding stream #0:0: Invalid data' >&2", &all, "Invalid data"),
        ("echo '[error] Conversion failed!' >&2; exit 69", &rest, "2 of 3 frames"),
        ("kill -9 $$", &rest, "2 of 3 frames"),
        ("printf 'P6 2 1 255\\n12'; exit 3", &rest, "2 of 3 frames"),
        ("printf 'P6 2 1 255\\n12'", &rest, "clip.mkv"),
    ] {
        let message = read(&[&came[..], script].concat()).expect_err(script);
        assert!(message.contains(fragment) && message.contains("clip.mkv"), "{script}: {message}");
    }
    // It reads nothing at all.
    let message = read("echo '[in#0 @ 0x1] [error] moov atom not found' >&2; exit 183").unwrap_err();
    assert!(message.contains("ffmpeg failed on") && message.contains("moov atom not found"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_video_is_probed_once() {
    let folder = tempfile::tempdir().unwrap();
    let [path, runs] = ["clip.mkv", "runs"].map(|name| folder.path().join(name));
    std::fs::write(&path, "what the shell does not look at").unwrap();
    let count = format!("echo run >> '{}'\n", runs.display());
    let stream = Stream::open(playing(&[&count, PREAMBLE, FRAME, FRAME, FRAME].concat()), &path).unwrap();
    assert_eq!(stream.info(), ClipInfo { size: [1, 2], frames: 3, fps: Fps::new(10, 1) });
    assert_eq!(Box::new(stream).frames().unwrap().map(Result::unwrap).count(), 3);
    // Its packets, its first frame, and all of them.
    assert_eq!(std::fs::read_to_string(runs).unwrap().lines().count(), 3);
}

/// Without the lost frames, the others make another rate, at which none is missing.
#[cfg(unix)]
#[test]
fn frames_lost_in_the_middle_are_missed() {
    let lossy = PREAMBLE.replace("00:00:00.30", "00:00:00.60").replace("0, 200, 200,", "0, 500, 500,");
    let read = |script: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.webm");
        std::fs::write(&path, "what the shell does not look at").unwrap();
        let stream = Stream::probe(playing(&[&lossy, FRAME, FRAME, FRAME, script].concat()), &path)?;
        Box::new(stream).frames()?.collect::<Result<Vec<_>, _>>().map(|frames| frames.len())
    };
    let message =
        read("echo '[in#0/matroska,webm @ 0x1] [error] 0x00 at pos 9 invalid as first byte of an EBML number' >&2").unwrap_err().to_string();
    assert!(message.contains("3 frames can be read") && message.contains("invalid as first byte"), "{message}");
    // Unequal times alone are no fault.
    assert_eq!(read("").unwrap(), 3);
}

#[cfg(unix)]
#[test]
fn what_hangs_is_ended() {
    let begun = Instant::now();
    let impatient = |script: &str| Program { patience: Duration::from_millis(400), ..playing(script) };
    let hangs = "sleep 100 & wait; sleep 100\n";
    for script in [hangs.to_owned(), [PREAMBLE, hangs].concat(), [PREAMBLE, FRAME, hangs].concat(), [PREAMBLE, FRAME, "exec >&-\n", hangs].concat()] {
        let message = read_by(&impatient(&script)).unwrap_err().to_string();
        assert!(message.contains("did not go on for 0.4 s"), "{script}: {message}");
    }
    // While it is tried, while it takes frames, and when it has all of them.
    let after_trial = "case \"$*\" in *-frames:v*) cat >/dev/null; exit;; esac\n";
    for script in [hangs.to_owned(), [after_trial, hangs].concat(), [after_trial, "cat >/dev/null\n", hangs].concat()] {
        let (written, files) = write_by(&impatient(&script), 20_000);
        assert!(matches!(&written, Err(IoError::Ffmpeg { message, .. }) if message.contains("did not go on")), "{script}: {written:?}");
        assert!(files.is_empty(), "{files:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    // Who waits for something else may take his time.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mkv");
    let mut writer: Box<dyn FrameWriter> = Box::new(FileWriter::new(&impatient("cat >/dev/null"), &Target::new(&path, [1, 3, 1, 2, 2])).unwrap());
    std::thread::sleep(Duration::from_secs(1));
    writer.write(&[9; 12]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    writer.finish().unwrap();
}

#[cfg(unix)]
#[test]
fn whatever_is_no_ffmpeg_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no program").unwrap();
    let at = |path: &Path| Program { path: path.to_owned(), ..playing("") };
    for program in [at(folder.path()), at(&file)] {
        for error in [read_by(&program).unwrap_err(), write_by(&program, 1).0.unwrap_err()] {
            assert!(error.to_string().contains("cannot be started") && !error.is_usage(), "{error}");
        }
    }
    assert!(matches!(read_by(&at(&folder.path().join("none"))), Err(IoError::NoFfmpeg { verb: "read", .. })));
    assert!(matches!(write_by(&at(&folder.path().join("none")), 1), (Err(IoError::NoFfmpeg { verb: "written", .. }), files) if files.is_empty()));
    // Something that ends at once, with and without a word.
    for (script, fragment) in [("exit 0", "holds no frames"), ("exit 7", "it says nothing"), ("echo '[fatal] no' >&2; exit 7", "no")] {
        let message = read_by(&playing(script)).unwrap_err().to_string();
        assert!(message.contains(fragment), "{script}: {message}");
    }
    for (script, fragment) in [
        ("exit 3", "3"),
        ("cat >/dev/null; exit 3", "3"),
        ("cat >/dev/null; echo '[mp4 @ 0x1] [error] no room' >&2", "no room"),
        ("head -c 5 >/dev/null; echo '[error] enough' >&2; exit 1", "enough"),
        ("case \"$*\" in *-frames:v*) cat >/dev/null; exit;; esac; head -c 50 >/dev/null; echo '[error] enough' >&2; exit 1", "enough"),
    ] {
        let (written, files) = write_by(&playing(script), 20_000);
        assert!(matches!(&written, Err(IoError::Ffmpeg { message, .. }) if message.contains(fragment)) && files.is_empty(), "{script}: {written:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn children_have_a_group_of_their_own_and_do_not_outlive_their_reader() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("pid");
    let script = format!("echo $$ $(cut -d' ' -f5 /proc/$$/stat) > '{0}.new'; mv '{0}.new' '{0}'; sleep 100", note.display());
    let mut process = Process::start(&playing(&script), &note, "read", &[], false).unwrap();
    let begun = Instant::now();
    let text = loop {
        match std::fs::read_to_string(&note) {
            Ok(text) => break text,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(20)),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (id, group) = text.trim().split_once(' ').unwrap();
    assert_eq!(id, group, "Ctrl-C at the terminal would reach it");
    let _open = process.take_stdout();
    drop(process);
    assert!(!Path::new("/proc").join(id).exists());
}

#[test]
fn streams_are_known_by_their_description() {
    let mut said = Said::default();
    for line in [
        "[info] Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'a, b.mp4':",
        "[info]   Duration: 00:01:02.50, start: 0.000000, bitrate: 61 kb/s",
        "[info]   Stream #0:0[0x0]: Video: png, rgb24(pc, gbr/unknown/unknown), 50x50 [SAR 1:1 DAR 1:1], 90k tbr, 90k tbn (attached pic)",
        "[info]   Stream #0:1[0x1](und): Video: hevc (Main 10) (hev1 / 0x31637661), yuv420p10le(tv, bt2020nc/bt2020/smpte2084, top first), 96x64 [SAR 4:3 DAR 2:1], 24 fps",
        "[info]     Metadata:",
        "[info]       DURATION        : 00:00:01.500000000",
        "[info]   Stream #0:2: Audio: vorbis, 44100 Hz, mono, fltp",
        "[info]       DURATION        : 00:00:09.500000000",
        "[info] Stream mapping:",
        "[info]   Stream #0:1: Video: rawvideo, rgb24(progressive), 96x64",
    ] {
        said.take(line);
    }
    let video = said.video.clone().unwrap();
    assert!(video.is_deep() && video.is_interlaced && !video.has_alpha() && !video.lacks_matrix());
    assert_eq!((&video.pixels[..], video.aspect.as_deref(), said.seconds()), ("yuv420p10le", Some("4:3"), Some(1.5)));
    assert_eq!(video.colour, ["bt2020nc", "bt2020", "smpte2084"]);
    assert_eq!(ignored(&video).len(), 3);
    for (pixels, is_deep, has_alpha, lacks_matrix) in [
        ("yuv420p", false, false, true),
        ("yuv420p(tv)", false, false, true),
        ("yuv420p(tv, bt709, progressive)", false, false, false),
        ("yuv420p(unknown/bt709/bt709)", false, false, true),
        ("yuvj420p(pc, bt470bg/unknown/unknown)", false, false, false),
        ("yuva444p10le(tv)", true, true, true),
        ("gbrp(pc, gbr/unknown/unknown)", false, false, false),
        ("gbrap12le", true, true, false),
        ("rgb24", false, false, false),
        ("rgba", false, true, false),
        ("gray10le(pc)", true, false, false),
        ("p010le", true, false, true),
    ] {
        let mut said = Said::default();
        said.take("[info] Input #0, avi, from 'x':");
        said.take(&format!("[info]   Stream #0:0: Video: ffv1, {pixels}, 96x64, 24 fps"));
        let video = said.video.unwrap();
        assert_eq!((video.is_deep(), video.has_alpha(), video.lacks_matrix()), (is_deep, has_alpha, lacks_matrix), "{pixels}");
    }
}

/// Whether there is an ffmpeg to test with.
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
fn is_installed() -> bool {
    let version = Command::new("ffmpeg").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_installed = version.is_ok_and(|status| status.success());
    if !is_installed {
        println!("skipped: no ffmpeg in the PATH");
    }
    is_installed
}

fn ffmpeg(folder: &Path, arguments: &str) {
    let arguments = arguments.split(' ').filter(|argument| !argument.is_empty());
    let output = Command::new("ffmpeg").args(["-nostdin", "-y", "-v", "error"]).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn write(path: &Path, samples: &HostTensor, fps: &str) {
    let [_, _, frames, height, width] = samples.shape();
    let mut sink = format_of(path).unwrap().create(&Target { fps: fps.parse().unwrap(), ..Target::new(path, samples.shape()) }).unwrap();
    sink.take([0; 3], [frames, height, width], samples.clone()).unwrap();
    sink.finish().unwrap();
}

fn read(path: &Path) -> (HostTensor, Option<Fps>) {
    let clip = Clip::read(path, 3, 1).unwrap();
    let [.., frames, height, width] = clip.shape();
    (clip.read(&Region { start: [0; 3], size: [frames, height, width] }).unwrap(), clip.fps())
}

fn message(path: &Path) -> String {
    Clip::read(path, 3, 1).map(|clip| clip.shape()).unwrap_err().to_string()
}

/// Fields of one colour each, in a row.
fn fields(frames: usize, height: usize, width: usize) -> HostTensor {
    let colours: [[f32; 3]; 6] = [[0.9, -0.8, -0.7], [-0.7, 0.8, -0.8], [-0.8, -0.6, 0.9], [1.0; 3], [-1.0; 3], [0.1, -0.2, 0.3]];
    HostTensor::from_fn([1, 3, frames, height, width], |[_, c, _, _, x]| colours[6 * x / width][c])
}

/// The difference in the middle of each field of `width` px, far from where codecs smear.
fn difference(a: &HostTensor, b: &HostTensor, width: usize) -> f32 {
    let rows = a.shape()[3].min(b.shape()[3]);
    let frames = a.shape()[2];
    assert_eq!(frames, b.shape()[2]);
    let places = (0..6).map(|field| (2 * field + 1) * width / 12);
    let places: Vec<usize> = places.collect();
    let of = |tensor: &HostTensor, plane: usize, x: usize| tensor.row(plane, rows / 2)[x];
    (0..3 * frames)
        .flat_map(|plane| places.iter().map(move |&x| (plane, x)))
        .map(|(plane, x)| (of(a, plane, x) - of(b, plane, x)).abs())
        .fold(0.0, f32::max)
}

#[test]
fn colours_sizes_and_rates_come_back() {
    if !is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, size, fps, matrix) in [
        ("sd.mkv", [64, 192], "30", "smpte170m"),
        ("hd.mkv", [64, 1284], "24000/1001", "bt709"),
        ("tall.mp4", [578, 192], "12.5", "bt709"),
        ("odd.mp4", [33, 187], "30", "smpte170m"),
        ("odd.webm", [33, 187], "10", "smpte170m"),
        ("odd.avi", [33, 187], "25", ""),
    ] {
        let path = folder.path().join(name);
        let samples = fields(5, size[0], size[1]);
        write(&path, &samples, fps);
        let (back, rate) = read(&path);
        let even = size.map(|side: usize| side.next_multiple_of(2));
        assert_eq!(back.shape(), [1, 3, 5, even[0], even[1]], "{name}");
        assert!((rate.unwrap().value() - fps.parse::<Fps>().unwrap().value()).abs() < 1e-6, "{name}: {rate:?}");
        let worst = difference(&samples, &back, size[1]);
        assert!(worst < 0.06, "{name}: {worst}");
        let info = Clip::probe(&path).unwrap();
        assert_eq!((info.size, info.frames, info.fps), (even, 5, rate), "{name}");
        let video = Overview::new(&Program::installed(), &path).unwrap().said.video.unwrap();
        assert!(matrix.is_empty() || video.colour == [matrix, "bt709", "bt709"], "{name}: {video:?}");
    }
    // No line of another colour at the border.
    let path = folder.path().join("white.mp4");
    write(&path, &HostTensor::from_fn([1, 3, 3, 33, 47], |_| 1.0), "30");
    let (back, rate) = read(&path);
    assert_eq!((back.shape(), rate), ([1, 3, 3, 34, 48], Fps::new(30, 1)));
    assert!(back.data().iter().all(|&value| value > 0.97));
}

#[test]
fn what_has_no_tags_is_read_as_players_do() {
    if !is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for size in [[64, 192], [64, 1284]] {
        let (y4m, mkv) = (folder.path().join("a.y4m"), folder.path().join("a.mkv"));
        write(&y4m, &fields(2, size[0], size[1]), "10");
        // A codec that loses nothing, and no tags.
        ffmpeg(folder.path(), "-i a.y4m -c:v ffv1 a.mkv");
        let worst = difference(&read(&y4m).0, &read(&mkv).0, size[1]);
        assert!(worst < 0.02, "{size:?}: {worst}");
        for (matrix, other) in [("bt709", size[1] < 1280), ("smpte170m", size[1] > 1280)] {
            ffmpeg(folder.path(), &format!("-i a.y4m -vf setparams=colorspace={matrix} -c:v ffv1 -colorspace {matrix} tagged.mkv"));
            let worst = difference(&read(&y4m).0, &read(&folder.path().join("tagged.mkv")).0, size[1]);
            assert!((worst > 0.1) == other && (other || worst < 0.02), "{size:?} {matrix}: {worst}");
        }
    }
    // More than 8 bits stay.
    let mut bytes = b"YUV4MPEG2 W64 H2 F5:1 C444p10\nFRAME\n".to_vec();
    bytes.extend((0..3 * 128).flat_map(|place: u16| (if place < 128 { 300 + place % 64 } else { 512 }).to_le_bytes()));
    std::fs::write(folder.path().join("deep.y4m"), bytes).unwrap();
    ffmpeg(folder.path(), "-i deep.y4m -c:v ffv1 deep.mkv");
    let [own, other] = ["deep.y4m", "deep.mkv"].map(|name| read(&folder.path().join(name)).0);
    let steps = other.row(0, 0).windows(2).filter(|pair| pair[1] > pair[0]).count();
    let worst = own.data().iter().zip(other.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(steps == 63 && worst < 0.003, "{steps} {worst}");
}

#[test]
fn what_is_cut_is_refused_and_what_is_odd_is_not() {
    if !is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = "-f lavfi -i testsrc=size=96x64:rate=24 -frames:v 48";
    for (name, codec) in [
        ("mpeg4.mkv", "mpeg4"),
        ("ffv1.mkv", "ffv1"),
        ("mpeg4.avi", "mpeg4"),
        ("mjpeg.avi", "mjpeg"),
        ("mpeg4.mp4", "mpeg4 -movflags +faststart"),
        ("mpeg4b.mov", "mpeg4 -bf 2"),
        ("fragments.mp4", "mpeg4 -movflags +frag_keyframe+empty_moov"),
    ] {
        ffmpeg(folder.path(), &format!("{source} -c:v {codec} {name}"));
        let (whole, fps) = read(&at(name));
        assert_eq!((whole.shape()[2], fps), (48, Fps::new(24, 1)), "{name}");
        assert_eq!(Clip::probe(&at(name)).unwrap(), ClipInfo { size: [64, 96], frames: 48, fps }, "{name}");
        let bytes = std::fs::read(at(name)).unwrap();
        let cut = at(&format!("cut.{}", at(name).extension().unwrap().to_str().unwrap()));
        for tenths in [1, 3, 5, 7, 9] {
            std::fs::write(&cut, &bytes[..bytes.len() * tenths / 10]).unwrap();
            let message = message(&cut);
            assert!(
                message.contains("cut.") && (message.contains("ffmpeg says: ") || message.contains("ffmpeg failed")),
                "{name}, {tenths}: {message}"
            );
        }
        // Nobody cares for what follows the end.
        std::fs::write(&cut, [&bytes[..], &[0; 777]].concat()).unwrap();
        assert_eq!(read(&cut), (whole, fps), "{name}");
    }
    let bytes = std::fs::read(at("ffv1.mkv")).unwrap();
    std::fs::write(at("cut.mkv"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(message(&at("cut.mkv")).contains(" of 48 frames can be read"), "{}", message(&at("cut.mkv")));
    // Beginnings that are not shown, frames at unequal times, and sound that lasts longer.
    ffmpeg(folder.path(), "-ss 0.7 -i mpeg4b.mov -c copy part.mp4");
    let (part, fps) = read(&at("part.mp4"));
    assert_eq!((part.shape()[2], fps), (Clip::probe(&at("part.mp4")).unwrap().frames, Fps::new(24, 1)));
    assert!(part.shape()[2] < 48);
    ffmpeg(folder.path(), &format!("{source} -vf select='not(mod(n,4))+lt(n,9)' -c:v mpeg4 unequal.mkv"));
    let (clip, fps) = read(&at("unequal.mkv"));
    let mean = fps.unwrap().value();
    assert!(clip.shape()[2] == 48 && mean > 6.0 && mean < 8.5, "{mean}");
    ffmpeg(folder.path(), "-i mpeg4.mkv -f lavfi -i sine=duration=9 -map 0 -map 1 -c:v copy sound.mkv");
    assert_eq!((read(&at("sound.mkv")).0.shape()[2], read(&at("sound.mkv")).1), (48, Fps::new(24, 1)));
    ffmpeg(folder.path(), "-f lavfi -i sine=duration=1 sound.mp4");
    assert!(message(&at("sound.mp4")).contains("ffmpeg failed on"));
}
