/**
 * The messages of kinetoscope.v1 that the page uses, as they stand in JSON: 64-bit numbers are strings, durations are text
 * such as "1.5s", and fields with their default value may be absent.
 */

export interface LabelScoreJson {
  index?: number;
  label?: string;
  score?: number;
}

export interface ClipJson {
  start?: string;
  end?: string;
  labels?: LabelScoreJson[];
  /** A JPEG in base64. */
  preview?: string;
}

export interface ProgressJson {
  receivedBytes?: string;
  clips?: string;
  position?: string;
}

export interface VideoInfoJson {
  frames?: string;
  clips?: string;
  duration?: string;
  width?: number;
  height?: number;
  codec?: string;
  container?: string;
  corruptPackets?: string;
}

export interface ClassificationJson {
  model?: { name?: string; version?: string };
  labels?: LabelScoreJson[];
  video?: VideoInfoJson;
  partial?: boolean;
  partialDetail?: string;
  warnings?: string[];
}

export interface ErrorJson {
  code?: string;
  reason?: string;
  message?: string;
  /** How long to wait before another try, such as "2s". */
  retryDelay?: string;
}

/** One event of a streamed answer. Exactly one field is set. */
export interface EventJson {
  clip?: ClipJson;
  progress?: ProgressJson;
  classification?: ClassificationJson;
  error?: ErrorJson;
}

export interface ModelJson {
  name?: string;
  version?: string;
  default?: boolean;
  trained?: boolean;
  architecture?: string;
  classes?: number;
  labels?: string[];
  clip?: { frames?: number; size?: number; temporalStride?: number };
  license?: string;
  origin?: string;
}

export interface LimitsJson {
  maxVideoBytes?: string;
  maxDuration?: string;
}

export interface ListModelsJson {
  models?: ModelJson[];
  limits?: LimitsJson;
}

export interface GetModelJson {
  model?: ModelJson;
}

/** Statistics of the Open Inference Protocol, as Triton has them. */
export interface StatisticsJson {
  model_stats?: {
    inference_count?: number | string;
    inference_stats?: { queue?: DurationCountJson; compute_infer?: DurationCountJson };
  }[];
}

export interface DurationCountJson {
  count?: number | string;
  ns?: number | string;
}
