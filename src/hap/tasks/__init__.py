"""One LightningModule per task: forward, losses, metric update. The steps are in `tasks.base`, once."""
