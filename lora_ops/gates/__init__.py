"""Gates: what a version must show before its next stage, computed from kept answers or from people's votes."""
