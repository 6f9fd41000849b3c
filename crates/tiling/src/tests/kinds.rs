//! Kinds of grids and blend policies by name.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::grid::UniformSize;
use crate::{
    BlendConfig, BlendKind, BlendPolicy, Cascade, Grid, GridConfig, GridContext, GridDefaults, GridError, GridKind, Overlap, Scale, Uniform,
};

/// A kind with the name `NAME` and a key of its own.
macro_rules! grid_kind {
    ($kind:ident, $name:literal) => {
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct $kind {
            rows: usize,
        }

        impl Default for $kind {
            fn default() -> Self {
                Self { rows: 2 }
            }
        }

        impl GridKind for $kind {
            const NAME: &'static str = $name;

            fn build(&self, _: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError> {
                Ok(Box::new(Uniform { size: UniformSize::Splits([self.rows, 1]), overlap: [0.0; 2] }))
            }
        }

        crate::register_grid!($kind);
    };
}

grid_kind!(Strips, "strips");
grid_kind!(First, "claimed");
grid_kind!(Second, "claimed");

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Smooth {}

impl BlendKind for Smooth {
    const NAME: &'static str = "smooth";

    fn build(&self) -> Box<dyn BlendPolicy> {
        Box::new(Cascade)
    }
}

crate::register_blend!(Smooth);

fn grid(section: Value) -> Result<GridConfig, String> {
    GridConfig::deserialize(section).map_err(|error| error.to_string())
}

const DEFAULTS: GridDefaults = GridDefaults { tile_px: [64; 2], overlap: Overlap::Share([0.25; 2]) };

#[test]
fn registered_kinds_have_a_name_and_keys() {
    assert_eq!(grid(json!({"kind": "strips"})).unwrap(), GridConfig::of(&Strips { rows: 2 }).unwrap());
    assert_eq!(grid(json!({"kind": "strips", "rows": 3})).unwrap().settings(), &json!({"rows": 3}));
    assert!(grid(json!({"kind": "strips", "columns": 3})).unwrap_err().contains("rows"));
    assert_eq!(BlendConfig::deserialize(json!({"kind": "smooth"})).unwrap().kind(), "smooth");
}

#[test]
fn unknown_and_ambiguous_names_are_refused() {
    let unknown = grid(json!({"kind": "strip"})).unwrap_err();
    assert!(["`strip`", "`strips`", "`diffusers`", "`family`"].iter().all(|name| unknown.contains(name)), "{unknown}");
    let claimed = grid(json!({"kind": "claimed"})).unwrap_err();
    assert!(claimed.contains("claimed twice") && claimed.contains(env!("CARGO_PKG_NAME")), "{claimed}");
    assert!(BlendConfig::deserialize(json!({"kind": "smoth"})).unwrap_err().to_string().contains("`smooth`"));
}

#[test]
fn the_kind_family_takes_keys_over_the_settings_of_the_family() {
    let own = GridConfig::of(&Strips { rows: 2 }).unwrap();
    let of_family = GridContext { family: Some(&own), ..GridContext::new(Scale::Up(8), &DEFAULTS) };
    // Its own settings, then a key that its grid does not have.
    let rows = |section: Value| grid(section).unwrap().build(&of_family).unwrap().spans(Scale::Up(8), [12, 30]).unwrap()[0].len();
    assert_eq!(rows(json!({"kind": "family"})), 2);
    let error = grid(json!({"kind": "family", "tile_px": 64})).unwrap().build(&of_family).unwrap_err().to_string();
    assert!(error.contains("`strips`") && error.contains("tile_px"), "{error}");
    // Without a grid of its own, the grid of diffusers with these keys.
    let plain = GridContext::new(Scale::Up(8), &DEFAULTS);
    let [family, diffusers] = ["family", "diffusers"].map(|kind| {
        let grid = grid(json!({"kind": kind, "tile_px": 128, "overlap": [0.5, 0.25]})).unwrap();
        assert_eq!(grid.settings(), &json!({"tile_px": 128, "overlap": [0.5, 0.25]}));
        let grid = grid.build(&plain).unwrap();
        grid.spans(Scale::Up(8), [40, 30]).unwrap()
    });
    assert_eq!(family, diffusers);
    assert!(family[0].len() > 1);
}
