//! The program with one more family.

use std::process::Command;

#[test]
fn it_lists_the_family_and_reads_its_model() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/model");
    let output = Command::new(env!("CARGO_BIN_EXE_downstream-vae")).args(["models", "--model", model]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("AutoencoderPatch") && text.contains("family patch"), "{text}");
}
