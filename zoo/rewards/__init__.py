"""Rewards by name. A row is ``name: "module:class"``; the class is imported when it is asked for (see ``zoo.load``)."""

REWARDS = {
    "emotion": "zoo.rewards.emotion:EmotionReward",
}
