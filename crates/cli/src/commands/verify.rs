use serde_json::json;
use tilevae::io::{Output, Verified, VerifyJob};

use crate::args::{Common, Verify};
use crate::interrupt::during;
use crate::output::{self, print};
use crate::watch::Watch;

pub(crate) fn verify(common: &Common, args: &Verify) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = super::run::files(common, &config, std::slice::from_ref(&args.input));
    // Before the output, which must not replace it.
    if let Some(against) = &args.against {
        files.read("--against", against);
    }
    let output = match &args.output {
        Some(path) => Some(super::run::named(&mut files, path, Output::samples(path, args.output_format))?),
        None => None,
    };
    let model = super::open_model(&config)?;
    let mut job = VerifyJob::with_files(&config, &model, &args.input, args.against.as_deref(), output.as_ref(), &mut files)?;
    let pipeline = super::run::load(&config, &model)?;
    super::warm_up(&pipeline, job.plan());
    let got = during(|| job.run_configured(&pipeline, super::run_options(&mut Watch::new(common, "tiled"))))?;
    let expected = during(|| job.run_reference(&pipeline, super::run_options(&mut Watch::new(common, "whole"))))?;
    let tiles = job.plan().tiles.tiles.len();
    let Verified { files: written, shape, max_difference, comparison, seam, gain, stats, reference } = job.finish(got, expected)?;
    let (psnr, ssim) = (comparison.psnr(), comparison.ssim());
    let against = match &args.against {
        Some(path) => path.display().to_string(),
        None => "the whole in one tile".to_owned(),
    };
    let seam_text = seam.map(|seam| format!(", seam {seam:.2}")).unwrap_or_default();
    let mut text = format!(
        "{} in {tiles} tiles against {against}: max |diff| {max_difference:.2e}, PSNR {psnr:.2} dB, SSIM {ssim:.5}{seam_text}\n\
         {:.2} s as configured",
        shape.map(|side| side.to_string()).join("x"),
        stats.elapsed.as_secs_f64()
    );
    if let Some(reference) = &reference {
        text += &format!(", {:.2} s in one tile", reference.elapsed.as_secs_f64());
    }
    text += "\n";
    for file in &written {
        text += &format!("wrote {}: the difference, times {gain:.3e}\n", super::run::shown(file));
    }
    let json = json!({
        "shape": shape, "tiles": tiles, "max_difference": max_difference, "psnr_db": psnr.is_finite().then_some(psnr), "ssim": ssim, "seam": seam,
        "gain": gain, "files": written.iter().map(|file| output::path(file)).collect::<Vec<_>>(), "run": stats, "reference": reference
    });
    print(common, &text, &json, files.take_stdout())
}
