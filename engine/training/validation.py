"""The validation of a run, of the raw and of the averaged weights."""

from __future__ import annotations

from mmengine.registry import LOOPS
from mmengine.runner import ValLoop

from engine.checkpoint.preemption import Stop
from engine.distributed.agreement import StopRequest
from engine.launch.heartbeat import HEARTBEAT, Phase
from engine.report.class_scores import ClassScores, class_lines, collect_class_scores
from engine.task import task_of
from engine.training.ema import ModelEMAHook


@LOOPS.register_module()
class ValidationLoop(ValLoop):
    """Validate the raw weights and, where they are kept, the averaged ones under ``ema/``.

    Attributes:
        class_scores: Scores of each class in the last validation: of the raw weights under an empty name, of the
            averaged ones under ``EMA``.
    """

    class_scores: dict[str, ClassScores]

    def run(self) -> dict[str, float]:
        """Evaluate and log once."""
        HEARTBEAT.enter(Phase.VALIDATION)
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        metrics = self._evaluate()
        self.class_scores = {"": collect_class_scores(self.evaluator)}
        for hook in self.runner.hooks:
            if isinstance(hook, ModelEMAHook):
                with hook.averaged():
                    metrics |= {f"ema/{name}": value for name, value in self._evaluate().items()}
                    self.class_scores["EMA"] = collect_class_scores(self.evaluator)
        for weights, scores in self.class_scores.items():
            heading = f"scores of the classes{f', {weights}' if weights else ''}"
            if lines := class_lines(heading, scores, (task_of(self.runner.cfg),)):
                self.runner.logger.info(lines)
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the weights that the model holds.

        Raises:
            Stop: If any process was asked to stop.
        """
        self.runner.model.eval()
        for idx, batch in enumerate(self.dataloader):
            HEARTBEAT.enter(Phase.VALIDATION)
            self.run_iter(idx, batch)
            request = self.runner.agreement.at_step(self.runner.signals.stop_request)
            if request > StopRequest.SAVE:
                raise Stop(request)
        return dict(self.evaluator.evaluate(len(self.dataloader.dataset)))
