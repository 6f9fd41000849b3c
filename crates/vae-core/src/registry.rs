use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::{VaeEntry, VaeError, WeightError};

/// The families of a program, by name.
#[derive(Debug, Clone)]
pub struct Registry {
    entries: BTreeMap<&'static str, &'static VaeEntry>,
    names: BTreeMap<String, &'static VaeEntry>,
}

/// Why no single family was found for a name or a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No family is linked.
    #[error("no VAE family is linked into this program; add `use vae_kl as _;` or another family's crate")]
    Empty,
    /// Two families claim one name.
    #[error("the VAE name `{name}` is claimed twice, by the crates {first} and {second}")]
    Duplicate {
        /// The name or alias.
        name: String,
        /// A crate.
        first: &'static str,
        /// The other crate.
        second: &'static str,
    },
    /// A name or an upstream class that no linked family has.
    #[error("{}", describe_unknown(name, linked, hint.as_deref()))]
    Unknown {
        /// The name.
        name: String,
        /// The linked families with their aliases, sorted.
        linked: String,
        /// A linked name that `name` is probably a typo of.
        hint: Option<String>,
    },
    /// A checkpoint without a configuration whose tensors no family recognises.
    #[error("{} has no config.json{} and its tensors are not those of {}", path.display(), not_used.as_ref().map(|why| format!(" of its own ({why})")).unwrap_or_default(),
        if family == "auto" { "a known VAE family" } else { family })]
    Unrecognised {
        /// The checkpoint.
        path: PathBuf,
        /// The family asked for, or `auto`.
        family: String,
        /// Why the `config.json` of its folder is not used.
        not_used: Option<String>,
    },
    /// The family refused the configuration.
    #[error(transparent)]
    Vae(#[from] VaeError),
    /// The checkpoint could not be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

/// How class names of diffusers begin.
const PREFIX: &str = "autoencoder";

fn describe_unknown(name: &str, linked: &str, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("unknown VAE family `{name}`; linked: {linked}; did you mean `{hint}`?"),
        None => format!(
            "unknown VAE family `{name}`: no crate that this program links brings it; linked: {linked}; CONTRIBUTING.md of tilevae (\"Add a VAE\") says how to \
             write and link one"
        ),
    }
}

impl Registry {
    /// All families that the program links.
    ///
    /// # Errors
    /// When there is none, or two claim one name.
    pub fn linked() -> Result<Self, RegistryError> {
        Self::from_entries(inventory::iter::<VaeEntry>)
    }

    /// These families and no others.
    ///
    /// # Errors
    /// When there is none, or two claim one name.
    pub fn from_entries(entries: impl IntoIterator<Item = &'static VaeEntry>) -> Result<Self, RegistryError> {
        let mut registry = Self { entries: BTreeMap::new(), names: BTreeMap::new() };
        for entry in entries {
            for name in std::iter::once(&entry.name).chain(entry.aliases) {
                if let Some(other) = registry.names.insert(name.to_ascii_lowercase(), entry) {
                    let mut crates = [other.origin, entry.origin];
                    crates.sort_unstable();
                    return Err(RegistryError::Duplicate { name: (*name).to_owned(), first: crates[0], second: crates[1] });
                }
            }
            registry.entries.insert(entry.name, entry);
        }
        if registry.entries.is_empty() { Err(RegistryError::Empty) } else { Ok(registry) }
    }

    /// The family of that name or alias; case is ignored.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] with the linked families, when there is none.
    pub fn get(&self, name: &str) -> Result<&'static VaeEntry, RegistryError> {
        let lower = name.to_ascii_lowercase();
        self.names.get(&lower).copied().ok_or_else(|| {
            let describe = |entry: &&VaeEntry| match entry.aliases {
                [] => entry.name.to_owned(),
                aliases => format!("{} ({})", entry.name, aliases.join(", ")),
            };
            let linked = self.entries.values().map(describe).collect::<Vec<_>>().join(", ");
            RegistryError::Unknown { name: name.to_owned(), linked, hint: self.closest(&lower) }
        })
    }

    /// The linked name that `lower` is probably a typo of. Of class names only the part after `Autoencoder` is compared: the prefix says nothing, and with it any two
    /// of them are alike.
    fn closest(&self, lower: &str) -> Option<String> {
        let distances = self.names.iter().map(|(known, entry)| {
            let [given, own] = match (lower.strip_prefix(PREFIX), known.strip_prefix(PREFIX)) {
                (Some(given), Some(own)) => [given, own],
                _ => [lower, known],
            };
            (strsim::damerau_levenshtein(own, given), (own.len() / 3).max(1), known, entry)
        });
        let (distance, most, known, entry) = distances.min_by_key(|&(distance, ..)| distance)?;
        let name = entry.aliases.iter().find(|alias| alias.eq_ignore_ascii_case(known)).unwrap_or(&entry.name);
        (distance <= most).then(|| (*name).to_owned())
    }

    /// All families, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = &'static VaeEntry> {
        self.entries.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Vae, VaeFamily, VaeSpec, Weights};

    #[derive(Serialize, Deserialize)]
    struct Fields {}

    /// A family that is only looked up.
    struct Named<const N: usize>;

    impl<const N: usize> VaeFamily for Named<N> {
        const NAME: &'static str = ["first", "second", "third"][N];
        const ALIASES: &'static [&'static str] = [&["AutoencoderFirst"] as &[&str], &[], &["autoencoderFIRST"]][N];
        const SUMMARY: &'static str = "";
        type Config = Fields;

        fn spec(_: &Fields) -> Result<VaeSpec, VaeError> {
            Err(VaeError::Frames { what: "latents", got: 0 })
        }

        fn load(_: &Fields, _: Weights, _: &Device, _: DType) -> Result<Box<dyn Vae>, VaeError> {
            Err(VaeError::Frames { what: "latents", got: 0 })
        }
    }

    static FIRST: VaeEntry = VaeEntry::of::<Named<0>>("crate-a");
    static SECOND: VaeEntry = VaeEntry::of::<Named<1>>("crate-b");
    static THIRD: VaeEntry = VaeEntry::of::<Named<2>>("crate-c");

    #[test]
    fn lookup_ignores_case() {
        let registry = Registry::from_entries([&SECOND, &FIRST]).unwrap();
        assert_eq!(registry.entries().map(|entry| entry.name).collect::<Vec<_>>(), ["first", "second"]);
        for name in ["first", "FIRST", "AutoencoderFirst", "autoencoderfirst"] {
            assert_eq!(registry.get(name).unwrap().origin, "crate-a");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_linked_families() {
        let registry = Registry::from_entries([&SECOND, &FIRST]).unwrap();
        let message = |name| registry.get(name).unwrap_err().to_string();
        assert_eq!(message("secnd"), "unknown VAE family `secnd`; linked: first (AutoencoderFirst), second; did you mean `second`?");
        for typo in ["AutoencoderFrist", "AutoencodrFirst", "autoencoderfirs"] {
            assert!(message(typo).ends_with("did you mean `AutoencoderFirst`?"), "{typo}");
        }
        // Another class is no typo, though most of its letters are the same.
        for other in ["AutoencoderTiny", "AutoencoderDC", "elephant"] {
            let message = message(other);
            assert!(message.starts_with(&format!("unknown VAE family `{other}`: no crate that this program links brings it")), "{message}");
            assert!(message.contains("linked: first (AutoencoderFirst), second; ") && message.contains("CONTRIBUTING.md"), "{message}");
        }
    }

    #[test]
    fn a_name_claimed_twice_names_both_crates() {
        for entries in [[&FIRST, &THIRD], [&THIRD, &FIRST]] {
            let error = Registry::from_entries(entries).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the VAE name `".to_owned() + entries[1].aliases[0] + "` is claimed twice, by the crates crate-a and crate-c"
            );
        }
    }

    #[test]
    fn no_family_at_all_says_how_to_link_one() {
        assert!(Registry::from_entries([]).unwrap_err().to_string().contains("use vae_kl as _;"));
    }
}
