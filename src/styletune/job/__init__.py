"""The main job: plan -> train -> score -> choose -> gate -> publish."""
