//! What programs read from standard error.

use std::process::Command;

use serde_json::Value;

use super::{Folder, root, skipped, tilevae};

const LATENTS: &str = "examples/latents/chelsea.safetensors";

/// The definition of an event, in which every reference is looked up.
fn definition(name: &str) -> Value {
    let text = std::fs::read_to_string(root("docs/events.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let reference = serde_json::json!({"$ref": format!("#/$defs/{name}")});
    assert!(schema["oneOf"].as_array().unwrap().contains(&reference), "{name} is no event of the schema");
    let mut event = schema["$defs"][name].clone();
    for property in event["properties"].as_object_mut().unwrap().values_mut() {
        if let Some(name) = property["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            *property = schema["$defs"][name].clone();
        }
    }
    event
}

/// As much of JSON Schema as the schema of events needs.
fn fits(schema: &Value, value: &Value) -> bool {
    let is_type = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("object") => value.is_object(),
        Some("array") => value.as_array().is_some_and(|items| items.iter().all(|item| fits(&schema["items"], item))),
        Some(other) => panic!("the type {other} is not checked"),
        None => true,
    };
    let is_one = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let is_it = schema.get("const").is_none_or(|constant| constant == value);
    let is_enough = schema["minimum"].as_f64().is_none_or(|least| value.as_f64().is_some_and(|value| value >= least));
    is_type && is_one && is_it && is_enough
}

/// The lines of standard error, each of which must be an event of the schema.
#[track_caller]
pub(crate) fn events(stderr: &[u8]) -> Vec<Value> {
    let read = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let schema = definition(event["event"].as_str().unwrap());
        let fields = event.as_object().unwrap();
        for key in schema["required"].as_array().unwrap() {
            assert!(fields.contains_key(key.as_str().unwrap()), "{key} is missing: {line}");
        }
        for (key, value) in fields {
            assert!(schema["properties"].get(key).is_some_and(|schema| fits(schema, value)), "{key}: {line}");
        }
        event
    };
    std::str::from_utf8(stderr).unwrap().lines().map(read).collect()
}

/// Runs a command that must fail with this exit code, and gives its error event, the last.
#[track_caller]
fn error_of(code: i32, args: &[&str]) -> Value {
    let output = tilevae(args);
    let events = events(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{events:?}");
    let error = events.last().unwrap().clone();
    assert_eq!((error["event"].as_str(), error["exit_code"].as_i64()), (Some("error"), Some(i64::from(code))), "{error}");
    error
}

#[test]
fn a_run_counts_frames_of_the_clip() {
    let folder = Folder::new();
    let [encoded, out] = ["l.safetensors", "out.gif"].map(|name| folder.path(name));
    let tiles = ["--set", "tiling.kind=uniform", "--set", "tiling.splits=[2, 1]", "--format", "json", "--model", "models/demo-wan"];
    let output = tilevae(&[&["encode", "examples/clips/chelsea.gif", "-o", &encoded], &tiles[..]].concat());
    assert!(output.status.success());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let latent_frames = result["shape"][2].as_u64().unwrap();
    let output = tilevae(&[&["decode", &encoded, "-o", &out], &tiles[..]].concat());
    let events = events(&output.stderr);
    let frames = 1 + 4 * (latent_frames - 1);
    assert_eq!(events[0]["event"], "started");
    for event in events.iter().filter(|event| event.get("of_frames").is_some()) {
        assert_eq!((event["of_frames"].as_u64(), event["of_tile_frames"].as_u64()), (Some(frames), Some(2 * frames)), "{event}");
    }
    let last = events.last().unwrap();
    assert_eq!((last["event"].as_str(), last["frames"].as_u64()), (Some("tile_finished"), Some(frames)), "{last}");
}

#[test]
fn errors_are_events() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    let json = ["--format", "json"];
    for (code, kind, args, said) in [
        (2, "arguments", vec!["decode"], "required"),
        (2, "arguments", vec!["decode", LATENTS, "-o", &out, "--fps", "x"], "frames a second"),
        (2, "arguments", vec!["decode", LATENTS, "-o", &out, "--fps", "16"], "--fps"),
        (2, "configuration", vec!["decode", LATENTS, "-o", &out, "--set", "io.jpeg_quality=0"], "io.jpeg_quality"),
        (2, "configuration", vec!["plan", "64x64", "--set", "devices.use=[]"], "devices.use"),
        (2, "grid", vec!["plan", "640x640", "--set", "tiling.tile_px=100"], "nearest legal value"),
        (1, "file", vec!["decode", "nowhere.safetensors", "-o", &out], "nowhere.safetensors"),
        (1, "model", vec!["plan", "64x64", "--model", "nowhere"], "nowhere"),
        (2, "device", vec!["decode", LATENTS, "-o", &out, "--device", "metal:3"], "metal"),
    ] {
        for quiet in [false, true] {
            let error = error_of(code, &[&args[..], &json, if quiet { &["-q"] } else { &[] }].concat());
            assert!(error["kind"] == kind && error["message"].as_str().unwrap().contains(said), "{error}");
        }
    }
    let error = error_of(1, &["plan", "64x64", "--model", "nowhere", "--format=json"]);
    assert!(!error["causes"].as_array().unwrap().is_empty(), "{error}");
    error_of(2, &["--format=json", "nonsense"]);
    assert!(folder.files().is_empty());
}

#[test]
fn log_lines_are_events() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    let args = ["decode", LATENTS, "-o", &out, "--set", "executor.kind=multi-device", "--format", "json"];
    let skipping = ["--device", "cpu,metal:3", "--set", "devices.on_missing=skip"];
    let output = tilevae(&[&args[..], &skipping].concat());
    let heard = events(&output.stderr);
    assert!(heard.iter().any(|event| event["level"] == "warn" && event["message"].as_str().unwrap().contains("metal:3")), "{heard:?}");
    // Everything that is said, to the last detail.
    events(&tilevae(&[&args[..], &["-vv"]].concat()).stderr);
    assert!(tilevae(&[&args[..], &skipping, &["-q"]].concat()).stderr.is_empty());
}

#[test]
fn colours_are_not_for_files_nor_for_those_who_do_not_want_them() {
    let Ok(terminal) = Command::new("script").args(["-qec", "true", "/dev/null"]).output() else {
        skipped("no program `script` to make a terminal");
        return;
    };
    if !terminal.status.success() {
        skipped("`script` makes no terminal");
        return;
    }
    let folder = Folder::new();
    let out = folder.path("out.png");
    let devices = "--set executor.kind=multi-device --device cpu,metal:3 --set devices.on_missing=skip";
    let command = format!("{} decode {LATENTS} -o {out} {devices}", env!("CARGO_BIN_EXE_tilevae"));
    let seen = |variable: Option<(&str, &str)>| {
        let mut shell = Command::new("script");
        shell.args(["-qec", &command, "/dev/null"]).current_dir(root("")).env("TERM", "xterm-256color");
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            shell.env_remove(name);
        }
        let output = shell.envs(variable).output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let warning = "\u{1b}[33m";
    let coloured = seen(None);
    assert!(coloured.contains(warning), "{coloured:?}");
    // The bar begins empty.
    let first = coloured.find("decode ").map(|at| &coloured[at..]).unwrap_or_default();
    assert!(!first.split('\r').next().unwrap_or_default().contains('█'), "{first:?}");
    for variable in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
        assert!(!seen(Some(variable)).contains(warning), "{variable:?}");
    }
    assert!(!seen(Some(("TERM", "dumb"))).contains('\u{1b}'));
}
