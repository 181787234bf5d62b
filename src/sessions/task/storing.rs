//! What a session stores, and when: at its own pace, or at once where somebody waits for it.

use std::sync::Arc;

use tokio::{sync::mpsc, time::Instant};

use super::{End, Task, UNSTORED_MAX, Version};
use crate::{
    engine::Input,
    resource::Refusal,
    sessions::{
        pace::Urgency,
        store::{Hold, Picture, Refused, StoreError},
    },
};

impl Task {
    pub(super) fn version(&self) -> Version {
        (self.session.version(), self.frame.changes)
    }

    pub(super) fn is_unsaved(&self) -> bool {
        self.saved != Some(self.version())
    }

    /// When the next write, or the end of patience with the store, is due.
    pub(super) fn store_timer(&self) -> Option<Instant> {
        let write = (self.saving.is_none() && self.is_unsaved()).then(|| self.write_at());
        let patience = self.unsaved_since.map(|since| since + UNSTORED_MAX).filter(|at| *at > Instant::now());
        [write, patience].into_iter().flatten().min()
    }

    fn write_at(&self) -> Instant {
        self.pace.next(if self.failures > 0 { Urgency::Paced } else { self.urgency })
    }

    pub(super) fn save_if_due(&mut self) {
        if self.saving.is_some() || !self.is_unsaved() || Instant::now() < self.write_at() {
            return;
        }
        let version = self.version();
        let picture = self.picture();
        if self.pictures.try_send(Box::new(picture)).is_ok() {
            let now = Instant::now();
            self.saving = Some((version, now));
            self.urgency = Urgency::Paced;
            // A write that hangs counts from its beginning.
            self.unsaved_since.get_or_insert(now);
        }
    }

    fn picture(&mut self) -> Picture {
        Picture {
            position: self.sink.position().cloned(),
            bus: self.standing.clone(),
            at: self.clock.now(),
            record: Arc::new(self.session.record()),
            plan: Arc::clone(self.session.plan()),
            settings: Arc::new(self.session.settings().clone()),
            counts: self.session.counts(),
            generation: self.frame.generation,
            refused: self.frame.refused.clone(),
            staged: self.frame.is_staged,
            contested: self.contest.is_on(),
            hold: if self.challenged.is_some() { Hold::Asked } else { Hold::Ours },
        }
    }

    pub(super) async fn written(&mut self, result: Result<(), StoreError>) -> Option<End> {
        let (version, began) = self.saving.take()?;
        match result {
            Ok(()) => {
                self.saved = Some(version);
                if std::mem::take(&mut self.is_too_large)
                    && self.frame.refused.as_ref().is_some_and(|refused| refused.refusal == Refusal::TooLarge)
                {
                    // Enough phases have ended: the rest fits, and may go on.
                    self.reframe(self.frame.generation, None, self.frame.is_staged);
                }
                self.failures = 0;
                self.unsaved_since = None;
                self.pace.wrote(began);
                self.answer_challenge(version).await;
                if self.store_at.is_some_and(|at| version.0 >= at) {
                    self.store_at = None;
                    self.feed(Input::Stored).await;
                }
                self.set_gate().await;
            }
            Err(StoreError::Deposed) => return Some(End::Deposed),
            Err(StoreError::Gone) => return Some(self.forget().await),
            Err(StoreError::TooLarge(message)) => {
                // Short of the rows, the write was made, and says whose the session is.
                self.saved = Some(version);
                self.unsaved_since = None;
                self.pace.wrote(began);
                self.answer_challenge(version).await;
                if !self.is_too_large {
                    self.is_too_large = true;
                    let refused = Refused { refusal: Refusal::TooLarge, message };
                    self.reframe(self.frame.generation, Some(refused), self.frame.is_staged);
                    self.set_gate().await;
                }
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::InDoubt(_))) => {
                if matches!(error, StoreError::InDoubt(_)) {
                    self.challenged.get_or_insert(self.frame.changes);
                }
                self.failures += 1;
                self.unsaved_since.get_or_insert(began);
                self.pace.failed(self.failures);
                tracing::warn!(session = %self.speech.session, error = &error as &dyn std::error::Error, "the status was not stored");
                self.set_gate().await;
            }
        }
        None
    }

    /// The store took this version for ours: where another process believes that it has the session, it is told, so that
    /// it looks before it grants anything more. What it granted before, and never stored, is known to nobody else.
    async fn answer_challenge(&mut self, version: Version) {
        if self.challenged.take_if(|change| version.1 >= *change).is_some() {
            self.send(self.speech.claim()).await;
        }
    }

    /// Stores what is known, once more, and ends. Says nothing: what runs goes on, and whoever comes next asks for it.
    pub(super) async fn stop(mut self, saved: &mut mpsc::Receiver<Result<(), StoreError>>, end: End) -> End {
        if self.saving.is_some() {
            if let Some(Ok(())) = saved.recv().await {
                self.saved = self.saving.map(|(version, _)| version);
            }
            self.saving = None;
        }
        if self.is_unsaved() {
            let picture = Picture { hold: Hold::Released, ..self.picture() };
            if self.pictures.try_send(Box::new(picture)).is_ok() {
                saved.recv().await;
            }
        }
        end
    }
}
