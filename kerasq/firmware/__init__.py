"""What a microcontroller project includes: C++ sources of a .tflite file for TFLite Micro."""
