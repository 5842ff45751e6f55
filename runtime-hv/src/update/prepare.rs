//! Preparing a bundle in the guest: module memory, the code in it, and the kernel's knowledge of it; and taking it back.
//!
//! Comes in: an admitted guest and a bundle, or an area that nothing can reach any more. Decided: in which order. Goes out: an
//! area that only needs the jumps, or none. Everything here happens while the guest runs; it stands only for the moments that
//! [`super::call`] and the copying need.
//!
//! # Consistency on error
//! An area that was not registered in the end is released again. If not even that is possible it stays in the document, and
//! [`Updater::catch_up`] releases it later.

use super::admit::Admitted;
use super::area::{self, Area, Parts, Witness};
use super::call::Context;
use super::{Times, UpdateError, Updater};
use crate::engine::{Engine, Va};
use crate::guest::Kernel;
use crate::guest::paging::PAGE;
use crate::guest::support::{Operation, Request};
use lpk_format::Bundle;
use std::collections::BTreeSet;

/// Bytes copied in one stop.
const STRETCH: usize = 16 << 10;
/// `-EEXIST`: a module of the name is there (`support/support.c`, `lucos_link`).
const EXISTS: i64 = -17;
/// How many names are tried.
const NAMES: usize = 8;

impl<E: Engine> Updater<E> {
    /// Prepares a bundle.
    ///
    /// # Errors
    /// [`UpdateError`]; see [`self`].
    pub(super) fn prepare(
        &mut self,
        admitted: &Admitted,
        bundle: &Bundle,
        id: &str,
        times: &mut Times,
    ) -> Result<Area, UpdateError> {
        let (kernel, facts) = (admitted.kernel.clone(), admitted.facts.clone());
        let root = kernel.root();
        let context = Context::new(kernel, facts, admitted.boot(), bundle, id)?;
        let wanted = Area {
            bundle: id.to_owned(),
            name: area::module_name(&bundle.manifest.name, &self.names()),
            kept: false,
            base: 0,
            parts: Parts::of(&bundle.payload, &context.facts),
            module: 0,
            witness: Witness { table: root.table.0, five_levels: root.five_levels, page: 0, name: 0 },
        };
        let request = Request::new(Operation::Allocate, wanted.parts.size());
        let base = times.measure_in("allocate", |times| self.ask(&context, &request, &wanted, times))?.base;
        let area = Area { base, ..wanted };
        match self.move_in(&context, bundle, &area, times) {
            Ok(()) => Ok(self.document.areas.iter().find(|known| known.base == base).cloned().unwrap_or(area)),
            Err(error) => {
                // The first error is the one to tell; what is not released now is released later.
                if self.document.call.is_none() && !self.unsettled {
                    let _ = self.release(&context, &area, times);
                }
                Err(error)
            }
        }
    }

    /// Copies the linked payload to its area and has it registered.
    fn move_in(
        &mut self,
        context: &Context,
        bundle: &Bundle,
        area: &Area,
        times: &mut Times,
    ) -> Result<(), UpdateError> {
        let mut taken = self.names();
        let mut name = area.name.clone();
        let mut filled = area::fill(&bundle.payload, &context.facts, area.base, &area.parts, &name)?;
        times.measure_in("copy", |times| self.copy(&context.kernel, &area.bundle, &filled.contents, times))?;
        for _ in 0..NAMES {
            let request = &filled.register;
            match times.measure_in("register", |times| self.ask(context, request, area, times)) {
                Err(UpdateError::Declined { error: EXISTS, .. }) => {
                    taken.insert(std::mem::take(&mut name));
                    name = area::module_name(&bundle.manifest.name, &taken);
                    filled.register.name.clone_from(&name);
                    self.document
                        .areas
                        .iter_mut()
                        .filter(|a| a.base == area.base)
                        .for_each(|a| a.name.clone_from(&name));
                }
                other => return other.map(drop),
            }
        }
        Err(UpdateError::Declined { operation: Operation::Register, error: EXISTS })
    }

    /// Writes to virtual addresses, a stretch of pages in each stop.
    fn copy(
        &mut self,
        kernel: &Kernel,
        bundle: &str,
        contents: &[(u64, Vec<u8>)],
        times: &mut Times,
    ) -> Result<(), UpdateError> {
        let pages = contents.iter().flat_map(|(at, bytes)| (*at..).step_by(PAGE).zip(bytes.chunks(PAGE)));
        let pages: Vec<(u64, &[u8])> = pages.collect();
        for stretch in pages.chunks(STRETCH / PAGE) {
            let resets = self.resets;
            self.stop(bundle, times, |engine| {
                if engine.resets() != resets {
                    return Err(UpdateError::OtherBoot);
                }
                for (at, bytes) in stretch {
                    let pa = kernel.translate(engine, Va(*at), "memory that it gave")?;
                    engine.write(pa, bytes)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Has an area that nothing can reach taken back by the guest.
    ///
    /// # Errors
    /// [`UpdateError`]; the area is still in the document.
    pub(super) fn release(&mut self, context: &Context, area: &Area, times: &mut Times) -> Result<(), UpdateError> {
        let mut request = Request::new(Operation::Release, area.parts.size());
        // What the document knows is newer than what the caller knows.
        let module = self.document.areas.iter().find(|known| known.base == area.base).map_or(0, |known| known.module);
        (request.base, request.module) = (area.base, module);
        times.measure_in("release", |times| self.ask(context, &request, area, times)).map(drop)
    }

    /// Names of the modules that are ours.
    fn names(&self) -> BTreeSet<String> {
        self.document.areas.iter().map(|area| area.name.clone()).collect()
    }
}
