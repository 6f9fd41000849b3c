use super::{Folder, refused, run, tilevae};

const LATENTS: &str = "examples/latents/chelsea.safetensors";

#[test]
fn a_run_tells_its_events_as_json_lines() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    let args = ["decode", LATENTS, "-o", &out, "--set", "executor.kind=multi-device", "--set", "devices.cpu.workers=2", "--format", "json"];
    let output = tilevae(&args);
    let lines = String::from_utf8(output.stderr).unwrap();
    let events: Vec<&str> = lines.lines().map(|line| line.split("\"event\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap()).collect();
    assert!(events[0] == "started" && events.last() == Some(&"tile_finished"), "{lines}");
    let count = |name: &str| events.iter().filter(|event| **event == name).count();
    assert_eq!([count("tile_started"), count("advanced"), count("tile_finished")], [96; 3]);
    assert!(
        lines.lines().next().is_some_and(|line| line.contains("\"workers\":[\"cpu/0\",\"cpu/1\"]") && line.contains("\"of_tiles\":96")),
        "{lines}"
    );
    let result = String::from_utf8(output.stdout).unwrap();
    for key in ["\"busy_seconds\"", "\"schedule_loss\"", "\"peak_memory_bytes\"", "\"uploaded_bytes\"", "\"retired\": null"] {
        assert!(result.contains(key), "{key}: {result}");
    }
    assert!(tilevae(&[&args[..], &["-q"]].concat()).stderr.is_empty());
    // Without JSON nothing is printed when standard error is no terminal.
    assert!(tilevae(&args[..args.len() - 2]).stderr.is_empty());
}

#[test]
fn traces_and_timelines_hold_every_stage() {
    let folder = Folder::new();
    let [out, trace, timeline] = ["out.png", "trace.json", "timeline.svg"].map(|name| folder.path(name));
    let files = ["--trace", &trace, "--timeline", &timeline];
    run(&[&["decode", LATENTS, "-o", &out, "--set", "executor.kind=pipelined", "--set", "devices.cpu.workers=2"], &files[..]].concat());
    let text = std::fs::read_to_string(&trace).unwrap();
    for stage in ["read", "upload", "compute", "download", "blend"] {
        assert_eq!(text.matches(&format!("\"name\":\"{stage} #")).count(), 96, "{stage}");
    }
    assert!(text.starts_with("{\"traceEvents\":[") && text.contains("\"name\":\"process_name\"") && text.contains("cpu/1"));
    let image = std::fs::read_to_string(&timeline).unwrap();
    assert!(
        image.starts_with("<svg") && image.contains("cpu/0") && image.contains("blending") && image.matches("decode: compute tile").count() == 96
    );

    run(&[&["roundtrip", "examples/clips/chelsea.gif", "--model", "models/demo-wan"], &files[..]].concat());
    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(text.contains("\"cat\":\"encode\"") && text.contains("\"cat\":\"decode\""));

    assert!(refused(1, &["decode", LATENTS, "-o", &out, "--trace", &folder.path("no/trace.json")]).contains("no/trace.json"));
    assert_eq!(folder.files(), ["out.png", "timeline.svg", "trace.json"]);
}

#[test]
fn devices_that_are_not_there_are_an_error_or_left_out() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    let args = ["decode", LATENTS, "-o", &out, "--set", "executor.kind=multi-device", "--set", "devices.cpu.workers=2"];
    let missing = refused(2, &[&args[..], &["--device", "cpu,metal:3"]].concat());
    assert!(missing.contains("metal:3 needs the Cargo feature `metal`") && missing.contains("it has: cpu"), "{missing}");
    let output = tilevae(&[&args[..], &["--device", "cpu,metal:3", "--set", "devices.on_missing=skip"]].concat());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && warning.contains("metal:3 needs") && warning.contains("the others do the work"), "{warning}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("on 2 workers"));
    refused(2, &[&args[..], &["--device", "metal:3", "--set", "devices.on_missing=skip"]].concat());
    let unused = refused(2, &[&args[..], &["--set", "devices.dtype.cuda:1=f16"]].concat());
    assert!(unused.contains("`devices.dtype`") && unused.contains("cuda:1 is not among"), "{unused}");
    if !cfg!(feature = "remote") {
        assert!(refused(2, &[&args[..], &["--device", "remote://127.0.0.1:1/0"]].concat()).contains("Cargo feature `remote`"));
        assert!(refused(2, &["worker"]).contains("Cargo feature `remote`"));
    }
}

#[test]
fn plans_say_how_many_tiles_are_held() {
    let plan = |executor: &str| run(&["plan", "4096x4096", "--set", "tiling.kind=diffusers", "--set", executor, "--set", "devices.cpu.workers=3"]);
    assert!(run(&["plan", "4096x4096", "--set", "tiling.kind=diffusers"]).contains("workers  1, at most 1 tile begun"));
    assert!(plan("executor.kind=multi-device").contains("workers  3, at most 12 tiles begun"), "{}", plan("executor.kind=multi-device"));
    assert!(plan("executor={kind=\"pipelined\",in_flight=4}").contains("at most 30 tiles"));
}
