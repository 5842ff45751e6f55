//! Which hypervisor `lucos-hv run` is tested with.
//!
//! Comes in: `LUCOS_TEST_ENGINE` (`qemu` if it is not set, `kvm` or `qemu-kvm`), `LUCOS_TEST_BOX`. Decided: whether this machine's own
//! KVM is used, or that of the box. Goes out: [`Engine`].

/// The variable is set to something else.
#[derive(Debug, thiserror::Error)]
#[error("{variable}={value}: expected {expected}")]
pub struct EngineError {
    variable: &'static str,
    value: String,
    expected: &'static str,
}

/// A hypervisor, and where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// QEMU's software emulation.
    Qemu,
    /// The bundled hypervisor, on this machine's KVM.
    Kvm,
    /// The bundled hypervisor in the box ([`crate::boxed`]).
    KvmInBox,
    /// QEMU with nothing but this machine's KVM.
    QemuKvm,
    /// QEMU with nothing but the KVM of the box.
    QemuKvmInBox,
}

impl Engine {
    /// The one that the tests are to use.
    ///
    /// # Errors
    /// [`EngineError`] when a variable is set to something else than it may be.
    pub fn wanted() -> Result<Self, EngineError> {
        let value = |variable| std::env::var(variable).ok();
        Self::from(value("LUCOS_TEST_ENGINE").as_deref(), value("LUCOS_TEST_BOX").as_deref())
    }

    fn from(engine: Option<&str>, in_box: Option<&str>) -> Result<Self, EngineError> {
        let unknown =
            |variable, value: &str, expected| Err(EngineError { variable, value: value.to_owned(), expected });
        match (engine, in_box) {
            (None | Some("" | "qemu"), _) => Ok(Self::Qemu),
            // That /dev/kvm is there says nothing: there are ones that no Linux boots on. So the box, unless a person knows better.
            (Some("kvm"), None | Some("" | "1")) => Ok(Self::KvmInBox),
            (Some("kvm"), Some("0")) => Ok(Self::Kvm),
            (Some("qemu-kvm"), None | Some("" | "1")) => Ok(Self::QemuKvmInBox),
            (Some("qemu-kvm"), Some("0")) => Ok(Self::QemuKvm),
            (Some("kvm" | "qemu-kvm"), Some(other)) => {
                unknown("LUCOS_TEST_BOX", other, "1, or 0 where this machine's own KVM works")
            }
            (Some(other), _) => unknown("LUCOS_TEST_ENGINE", other, "qemu, kvm or qemu-kvm"),
        }
    }

    /// What `lucos-hv run --engine` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Kvm | Self::KvmInBox => "kvm",
            Self::QemuKvm | Self::QemuKvmInBox => "qemu-kvm",
        }
    }

    /// Whether it runs in the box.
    pub fn is_in_box(self) -> bool {
        matches!(self, Self::KvmInBox | Self::QemuKvmInBox)
    }

    /// Whether it tells of writes and reports of the guest, so that both versions of a Type 2 update can run at once.
    pub fn watches(self) -> bool {
        !matches!(self, Self::QemuKvm | Self::QemuKvmInBox)
    }
}

#[cfg(test)]
mod tests {
    use super::Engine;

    #[test]
    fn the_variables_say_which() {
        for (engine, in_box, expected) in [
            (None, None, Some(Engine::Qemu)),
            (Some("qemu"), Some("0"), Some(Engine::Qemu)),
            (Some("kvm"), None, Some(Engine::KvmInBox)),
            (Some("kvm"), Some("0"), Some(Engine::Kvm)),
            (Some("kvm"), Some("2"), None),
            (Some("qemu-kvm"), Some("1"), Some(Engine::QemuKvmInBox)),
            (Some("xen"), None, None),
        ] {
            assert_eq!(Engine::from(engine, in_box).ok(), expected, "{engine:?} {in_box:?}");
        }
    }
}
